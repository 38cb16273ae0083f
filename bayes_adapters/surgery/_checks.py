"""What pruning, merging and exporting an adapter refuses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.backbones.quantised import plain_weight
from bayes_adapters.errors import ConfigError, integer, whole_number
from bayes_adapters.files import fingerprint
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part, Site

_OF_THE_MODEL = {
    "outputs": "a head",
    "encode": "a way through the backbone",
    "forward": "a generative process",
}
"""Members of a model that make its function besides the layers → what they are."""


def require_threshold(threshold: float, min_rank: int) -> None:
    """Raise :class:`ConfigError` unless the threshold is a number and ``min_rank`` a whole one, 0 or more."""
    if not isinstance(threshold, int | float) or math.isnan(threshold):
        raise ConfigError(
            f"threshold is the score from which ranks are taken out, the paper's 2 to 5; got {threshold!r}."
        )
    whole_number("min_rank", min_rank, least=0)


def require_times(start: int, every: int, until: int | None) -> None:
    """Raise :class:`ConfigError` unless the steps of a schedule are whole numbers, ``start`` not after ``until``."""
    for name, value in {"start": start, "every": every, "until": until}.items():
        if name != "until" or value is not None:
            whole_number(name, value)
    if until is not None and until < start:
        raise ConfigError(
            f"Nothing would be pruned: no removal after step until={until}, none before start={start}. "
            "Pass a smaller start= or a larger until=."
        )


def require_finite_scores(scores: Mapping[str, Tensor]) -> None:
    """Raise :class:`ConfigError` where a score is NaN or infinite."""
    bad = [path for path, each in scores.items() if not bool(each.isfinite().all())]
    if bad:
        raise ConfigError(f"The scores of {bad[0]!r} are not finite: its posterior holds NaN or infinity.")


def require_ranks_left(scores: Mapping[str, Tensor], kept: Mapping[str, Tensor], threshold: float) -> None:
    """Raise :class:`ConfigError` where there are ranks, and none of them would be kept."""
    if any(map(len, scores.values())) and not any(map(len, kept.values())):
        every = torch.cat(list(scores.values()))
        raise ConfigError(
            f"threshold={threshold:g} would take out all {len(every)} ranks: their scores lie between "
            f"{every.min():.2f} and {every.max():.2f}. A fresh adapter scores about 3.6, so this is likely too early: "
            "prune after a warm-up (PruneSchedule(start=…)), start from init_log_variance=-12, raise the threshold, "
            "set min_rank=1, or pass allow_empty=True if that is what you want."
        )


def required_normal(site: Site, posterior: object) -> torch.distributions.Normal:
    """Return the posterior of a site; raise :class:`ConfigError` unless it is Gaussian."""
    if not isinstance(posterior, torch.distributions.Normal):
        raise ConfigError(
            f"Ranks are scored by a Gaussian posterior; that of {site.name!r} is a {type(posterior).__name__}. Take "
            "the guide RankWise."
        )
    return posterior


def no_factors(model: AdapterModel) -> ConfigError:
    """Return the error for a model in which A or B is not random, or layers share a site."""
    return ConfigError(
        f"Ranks are taken out where A and B are random, one site per layer; {type(model).__name__} has "
        f"{', '.join(site.name for site in model.sites[:3]) or 'nothing random'}. Take StochasticFactors."
    )


def require_smaller(ranks: Mapping[str, int], now: Mapping[str, int]) -> None:
    """Raise :class:`ConfigError` unless every layer of ``ranks`` exists and has at least that rank ``now``."""
    wrong = [path for path, rank in ranks.items() if path not in now or not 0 <= rank <= now[path]]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r} cannot be cut to rank {ranks[wrong[0]]}: it has {now.get(wrong[0], 'no adapter')}."
        )


def not_prunable(guide: object) -> ConfigError:
    """Return the error for a guide that does not say which of its parameters have a rank axis."""
    return ConfigError(
        f"{type(guide).__name__} does not say which of its parameters have a rank axis (rank_parameters). Take the "
        "guide RankWise."
    )


def require_cuttable(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Raise :class:`ConfigError` where the optimiser's state of ``parameter`` has another shape than it."""
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


def require_no_inter(path: str, layer: AdaptedLinear) -> None:
    """Raise :class:`ConfigError` where a layer has a path from another modality."""
    if layer.inter:
        raise ConfigError(
            f"{path!r} has a path from {', '.join(layer.inter)} whose core Φ(x̄) is another one for every input, so "
            "no single weight equals it. merge_intra(model) merges the rest; to merge all, train with "
            "ConcatLoRA, whose encoders do not see each other."
        )


def require_mergeable(path: str, layer: AdaptedLinear) -> None:
    """Raise :class:`ConfigError` where a layer is random, or its base layer has no floating-point weight."""
    if layer.sites:
        parts = ", ".join(part.value for part in layer.sites)
        raise ConfigError(
            f"{path!r} has a random {parts}: a draw, not a weight, so there is nothing to merge. Export the "
            "posterior's mean first: bayes_adapters.surgery.export.to_lora(model, guide, backbone)."
        )
    if plain_weight(layer.base_layer) is None:
        weight = getattr(layer.base_layer, "weight", None)
        raise ConfigError(
            f"The base layer {path!r}, a {type(layer.base_layer).__name__}, has no floating-point weight of its own "
            f"but a {type(weight).__name__} (quantised, sharded, or computed from others by a parametrisation?), so "
            "nothing can be added to it. Keep the adapter; write it as a PEFT folder, which is served beside such a "
            "base (bayes_adapters.files.peft.to_peft); or load that folder onto the backbone in full precision "
            "(from_peft), and merge there."
        )


def require_own_bases(backbone: nn.Module, layers: Mapping[str, AdaptedLinear]) -> None:
    """Raise :class:`ConfigError` unless ``backbone`` has at each path the base of that adapted layer."""
    modules = dict(backbone.named_modules(remove_duplicate=False))
    for path, layer in layers.items():
        found = modules.get(path)
        if (found.base_layer if isinstance(found, AdaptedLinear) else found) is not layer.base_layer:
            raise ConfigError(
                f"The backbone's layer {path!r} is not the one that was adapted: it has been replaced since, or this "
                "is another backbone. Build the model again, or load what was saved of it."
            )


def require_separable(path: str, layer: AdaptedLinear) -> None:
    """Raise :class:`ConfigError` unless the layer's intra-modal path can be taken out alone."""
    if type(layer).as_lora is not AdaptedLinear.as_lora:
        raise ConfigError(
            f"{path!r} is a {type(layer).__name__}; the intra-modal path is taken out of plain adapted layers only."
        )
    if any(other.lora_A is layer.lora_A or other.lora_B is layer.lora_B for other in layer.inter.values()):
        raise ConfigError(
            f"The two paths of {path!r} share a matrix, so the intra-modal one cannot be taken out alone. Merging "
            "needs share='none'."
        )


def require_draw(draw: int | None, seed: int) -> None:
    """Raise :class:`ConfigError` unless a draw is a number from 0, and a seed that of a draw."""
    integer("seed", seed)
    if draw is not None:
        whole_number("draw", draw, least=0)
    elif seed:
        raise ConfigError(f"seed={seed} has no effect without draw=s: the posterior's mean is no draw.")


def require_weights(sites: Iterable[Site]) -> None:
    """Raise :class:`ConfigError` where a site's mean is no weight: the site is local, or a mask."""
    for site in sites:
        if site.granularity is not Granularity.GLOBAL or (site.part not in REAL and site.part != Part.GATE):
            raise ConfigError(
                f"{site.name!r} is drawn anew for each input or is a mask, so its mean is no weight of a plain LoRA. "
                "Only adapters with random weights (A, B, or a global core) or gates can be exported."
            )


def require_plain_model(model: AdapterModel, *, random_head: bool = False) -> None:
    """Raise :class:`ConfigError` where a model has a head, an encoding or a generative process of its own.

    ``random_head`` says that a random head of the usual place is none.
    """
    for name, what in _OF_THE_MODEL.items():
        if getattr(type(model), name) is not getattr(AdapterModel, name):
            raise ConfigError(f"{type(model).__name__} has {what} of its own kind, which a plain LoRA cannot hold.")
    if model.random_head and not random_head:
        raise ConfigError(f"The head of this {type(model).__name__} is random, and a plain LoRA holds weights only.")


def require_copy(backbone: nn.Module, trained: nn.Module) -> None:
    """Raise :class:`ConfigError` unless ``backbone`` holds the weights of the one that was ``trained`` on."""
    if fingerprint(backbone) != fingerprint(trained):
        raise ConfigError(
            f"The {type(backbone).__name__} given is not a copy of the backbone the adapter was trained on: names, "
            "shapes or values of its weights differ. Load the same checkpoint, in the same dtype."
        )


def require_any_rank(factors: Mapping[str, object]) -> None:
    """Raise :class:`ConfigError` where no layer has a rank left."""
    if not factors:
        raise ConfigError(
            "No rank is left in any layer, so there is no adapter to export: the model is the frozen backbone and the "
            "head model.head."
        )
