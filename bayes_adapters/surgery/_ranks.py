"""Cutting ranks out of a model, its guide and their optimiser, in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity, Part, Site
from bayes_adapters.surgery._checks import no_factors, not_prunable, require_cuttable, require_smaller

_AXIS = {Part.A: -2, Part.B: -1}  # where the ranks are in a site's shape


@runtime_checkable
class Prunable(Protocol):
    """What a guide must have for its ranks to be taken out."""

    def rank_parameters(self, site: Site) -> list[tuple[nn.Parameter, int]]:
        """List the parameters of a site of one layer that have a rank axis, and which axis."""
        ...


def require_factors(model: AdapterModel, guide: AdapterGuide) -> dict[str, tuple[Site, Site]]:
    """Return layer path → its site of A and its site of B.

    Raises:
        ConfigError: the guide is another model's; A or B is not random; layers share a site.
    """
    require_pair(model, guide)
    found = {(site.part, path): site for site in model.sites for path in site.layers}
    single = all(len(s.layers) == 1 and s.granularity is Granularity.GLOBAL and s.part in _AXIS for s in model.sites)
    if not single or any((part, path) not in found for part in _AXIS for path in model.layers):
        raise no_factors(model)
    return {path: (found[Part.A, path], found[Part.B, path]) for path in model.layers}


def shrink(model: AdapterModel, guide: AdapterGuide, ranks: Mapping[str, int]) -> None:
    """Cut every layer to ``ranks``, keeping its first ones; for tensors that are about to be overwritten.

    Raises:
        ConfigError: a layer is to have more ranks than it has, or there is no such layer.
    """
    now = model.ranks
    require_smaller(ranks, now)
    change = {path: torch.arange(rank) for path, rank in ranks.items() if rank != now[path]}
    if change:
        cut(model, guide, None, change)


def cut(
    model: AdapterModel, guide: AdapterGuide, optimizer: torch.optim.Optimizer | None, kept: Mapping[str, Tensor]
) -> None:
    """Keep, in every layer of ``kept``, the ranks numbered there: in the guide, the sites, the prior, the optimiser.

    Raises:
        ConfigError: the guide, the prior or the optimiser's state cannot be cut; nothing was changed.
    """
    if not isinstance(guide, Prunable):
        raise not_prunable(guide)
    pairs = {path: pair for path, pair in require_factors(model, guide).items() if path in kept}
    slots: dict[int, tuple[nn.Parameter, int, Tensor]] = {}
    for path, pair in pairs.items():
        for parameter, axis in [entry for site in pair for entry in guide.rank_parameters(site)]:
            slots[id(parameter)] = (parameter, axis, kept[path].to(parameter.device))
    if optimizer is not None:
        for parameter, _, _ in slots.values():
            require_cuttable(optimizer, parameter)
    for site in [site for pair in pairs.values() for site in pair]:
        model.prior.require_elementwise(site)
    layers = adapted_layers(model.backbone)
    for path, pair in pairs.items():
        for site in pair:
            model.prior.select(site, _AXIS[site.part], kept[path])
            event = list(site.event)
            event[_AXIS[site.part]] = len(kept[path])
            new = replace(site, event=tuple(event))
            model.sites[model.sites.index(site)] = layers[path].sites[site.part] = new
        layers[path].rank = len(kept[path])
    for parameter, axis, index in slots.values():
        _cut_parameter(parameter, axis, index, optimizer)


def _cut_parameter(parameter: nn.Parameter, axis: int, index: Tensor, optimizer: torch.optim.Optimizer | None) -> None:
    shape, gradient = parameter.shape, parameter.grad
    parameter.grad = None
    data = parameter.data.index_select(axis, index)
    # autograd remembers the old shape for as long as a loss from before is alive; only another dtype makes it forget.
    parameter.data = data.to(torch.float16 if data.dtype is not torch.float16 else torch.float32)
    parameter.data = data
    parameter.grad = None if gradient is None else gradient.index_select(axis, index)
    state = {} if optimizer is None else optimizer.state.get(parameter, {})
    for name, value in state.items():
        if isinstance(value, Tensor) and value.dim() and value.shape == shape:
            state[name] = value.index_select(axis, index)
