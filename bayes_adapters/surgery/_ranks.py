"""Cutting ranks out of a model, its guide and their optimiser, in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity, Part, Site

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
        raise ConfigError(
            f"Ranks are taken out where A and B are random, one site a layer; {type(model).__name__} has "
            f"{', '.join(site.name for site in model.sites[:3]) or 'nothing random'}. Take StochasticFactors."
        )
    return {path: (found[Part.A, path], found[Part.B, path]) for path in model.layers}


def shrink(model: AdapterModel, guide: AdapterGuide, ranks: Mapping[str, int]) -> None:
    """Cut every layer to ``ranks``, keeping its first ones; for tensors that are about to be overwritten.

    Raises:
        ConfigError: a layer is to have more ranks than it has, or there is no such layer.
    """
    now = model.ranks
    wrong = [path for path, rank in ranks.items() if path not in now or not 0 <= rank <= now[path]]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r} cannot be cut to rank {ranks[wrong[0]]}: it has {now.get(wrong[0], 'no adapter')}."
        )
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
        raise ConfigError(
            f"{type(guide).__name__} does not say which of its parameters have a rank axis (rank_parameters). Take the "
            "guide RankWise."
        )
    pairs = {path: pair for path, pair in require_factors(model, guide).items() if path in kept}
    slots: dict[int, tuple[nn.Parameter, int, Tensor]] = {}
    for path, pair in pairs.items():
        for parameter, axis in [entry for site in pair for entry in guide.rank_parameters(site)]:
            slots[id(parameter)] = (parameter, axis, kept[path].to(parameter.device))
    if optimizer is not None:
        for parameter, _, _ in slots.values():
            _require_cuttable(optimizer, parameter)
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


def _require_cuttable(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    for name, value in optimizer.state.get(parameter, {}).items():
        fine = value.dim() == 0 or value.shape == parameter.shape if isinstance(value, Tensor) else _is_plain(value)
        if not fine:
            shape = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ConfigError(
                f"{type(optimizer).__name__} keeps {name!r}, {shape}, for a parameter of shape "
                f"{tuple(parameter.shape)}; it is unknown which ranks that belongs to. Take an optimiser whose state "
                "has the parameters' shapes (Adam, AdamW, SGD), or pass optimizer=None and make a new one."
            )


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


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
