"""What a system is: a model, a guide, and which of their options may be given; the table is in ``systems``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bayes_adapters import guides, models
from bayes_adapters._options import parameters_of
from bayes_adapters.adapters.targets import Targets, select
from bayes_adapters.errors import TargetError
from bayes_adapters.heads import Head
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.systems.recipes import Recipe

QUERY_VALUE = "query-value"
"""The value of ``targets`` that stands for the query and value projections, whatever the backbone calls them."""

ON_TOKENS = Targets(
    "all-linear",
    exclude=["pooler.dense", "continuous_position_bias_mlp.0", "continuous_position_bias_mlp.2"],
)
"""Every linear layer but a pooler, which no model here reads, and those of Swin V2's table of relative positions."""

_NAMES = (["query", "value"], ["q_proj", "v_proj"], ["q_lin", "v_lin"], ["query_proj", "value_proj"], ["q", "v"])
_FUSED = (["c_attn"], ["query_key_value"], ["Wqkv"])


@dataclass(frozen=True)
class System:
    """A published method.

    Args:
        name: lower case, with hyphens.
        model: the structure.
        guide: the posterior family.
        model_options: of the model; ``targets`` may be :data:`QUERY_VALUE`.
        guide_options: of the guide.
        training: how it was trained.
        source: paper, code, and where the values come from.
        head: ``pooling`` → the system's head, made anew for each model; None is the structure's own. The option
            ``head`` of the model beats it.
        inferred: what no source says, and where this library departs from it.

    >>> from bayes_adapters.systems import SYSTEMS
    >>> system = SYSTEMS["c-lora"]
    >>> system.model.__name__, system.guide.__name__
    ('StochasticCore', 'Contextual')
    """

    name: str
    model: type[AdapterModel]
    guide: type[AdapterGuide]
    training: Recipe
    source: str
    model_options: Mapping[str, Any] = field(default_factory=dict)
    guide_options: Mapping[str, Any] = field(default_factory=dict)
    head: Callable[..., Head] | None = None
    inferred: str = ""

    def options(self) -> dict[str, list[str]]:
        """Return the names of the options that may be given, those of ``"model"`` and those of ``"guide"``."""
        return {"model": sorted(_accepted(self.model)), "guide": sorted(_accepted(self.guide))}


def query_value(backbone: nn.Module) -> list[str]:
    """Return the suffixes of the attention's query and value projections, or of the one layer that holds both.

    Raises:
        TargetError: the backbone calls them otherwise.
    """
    for suffixes in (*_NAMES, *_FUSED):
        try:
            select(backbone, suffixes)
        except TargetError:
            continue
        return list(suffixes)
    linear = sorted({path.rsplit(".", 1)[-1] for path in select(backbone, "all-linear")})
    raise TargetError(
        f"{type(backbone).__name__} has no query and value projections of a known name; say which of its linear layers "
        f"to adapt: targets= a list of {', '.join(linear)}, or 'all-linear'."
    )


def _accepted(cls: type) -> set[str]:
    return {name for name in parameters_of(cls) if name not in _FIXED.get(cls, ())}


def required(cls: type) -> set[str]:
    """Return the names of the options without which a model or guide cannot be built."""
    return {name for name, p in parameters_of(cls).items() if p.default is p.empty}


_RANDOM = ("parts", "granularity", "prior", "num_data", "grouped", "flipout")
_FIXED: dict[type, Iterable[str]] = {
    models.LoRA: _RANDOM,
    models.FusionLoRA: _RANDOM,
    models.AdapterDropout: ("parts", "num_data", "flipout"),
    models.StochasticCore: ("parts", "flipout"),
    models.FusionCore: ("parts", "flipout"),
    models.PoLAR: ("parts", "flipout"),
    models.StochasticDown: ("parts", "granularity"),
    models.DiagonalCore: ("parts", "granularity", "flipout"),
    models.StochasticFactors: ("parts", "granularity", "grouped", "flipout"),
    models.ConcatLoRA: (*_RANDOM, "pooling"),
    models.CoLA: {*_RANDOM, "pooling", "ranks"} - {"prior"},
    models.Wander: {*_RANDOM, "pooling", "ranks"} - {"prior", "num_data"},
    guides.PooledContext: ("context", "heads"),
    guides.CrossAttention: ("context", "kv_sharing"),
}
"""What a class passes on by itself, or what has no effect in it."""

MEANINGS = {
    "num_data": "the size of the training set, for which a posterior over weights has one KL",
    "context_dim": "the width of the frames in Batch.context, or modality → width of several contexts",
    "lengths": "encoder → rows of its token factor, about as many as its sequences have tokens",
}
