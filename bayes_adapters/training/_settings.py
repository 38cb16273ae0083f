"""The options of ``fit``: completed by a recipe, checked, and what None of them stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from bayes_adapters.errors import choice, integer
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.schedules import KLSchedule
from bayes_adapters.training import _checks, _data
from bayes_adapters.training._optimizer import OptimizerLike

OWN = "own"
"""The value of ``recipe`` that stands for the recipe of the system that the guide was built as a part of."""
_TOGETHER = {"optimizer": "scheduler", "kl_weight": "kl_mode"}
"""What a caller gives → what then is not the recipe's: a schedule is that of an optimiser, a weight that of a mode."""
OnStep = Callable[[int, Any, Any, torch.optim.Optimizer], None]
"""(step, model, guide, optimizer) → None"""


class Mode(StrEnum):
    """Which values of the monitored metric are better."""

    MIN = "min"
    """Lower ones."""
    MAX = "max"
    """Higher ones."""


@runtime_checkable
class RecipeLike(Protocol):
    """What :class:`bayes_adapters.systems.Recipe` is."""

    @property
    def fit_options(self) -> Callable[..., dict[str, Any]]:
        """(model, guide, *, num_data, batch_size, max_steps) → options of :func:`fit` that follow from them."""
        ...


@dataclass(frozen=True)
class Settings:
    """The options of :func:`bayes_adapters.training.fit` that a run goes by; monitor and mode are resolved."""

    epochs: int | None
    max_steps: int | None
    optimizer: OptimizerLike | None
    scheduler: Callable[[torch.optim.Optimizer], Any] | None
    kl_weight: float | KLSchedule
    kl_mode: KLMode | str
    num_particles: int
    clip_norm: float | None
    accumulate: int
    num_samples: int
    evaluate: Callable[[Any, Any], Mapping[str, float]] | None
    monitor: str | None
    maximise: bool
    patience: int | None
    checkpoint: Path | None
    checkpoint_every: int | None
    seed: int
    autocast: torch.dtype | None
    recompute: bool
    log_every: int
    on_step: OnStep | None
    from_recipe: str = ""
    """What the recipe of the guide's own system gave, for a person to read; empty without one."""


def resolve(given: dict[str, Any]) -> Settings:
    """Return the settings that the arguments of ``fit``, by name, stand for.

    Raises:
        ConfigError: they do not fit together.
    """
    _checks.check_options(given)
    options: dict[str, Any] = {"kl_weight": 1.0, "kl_mode": KLMode.FULL, "num_samples": 8}
    own = isinstance(given["recipe"], str) and given["recipe"] == OWN
    recipe = getattr(given["guide"], "recipe", None) if own else given["recipe"]
    taken: dict[str, Any] = {}
    if recipe is not None:
        taken = _recipe_options(recipe, given)
        _checks.check_options(taken)
        for mine, its in _TOGETHER.items():
            if own and given[mine] is not None:
                taken.pop(its, None)
        options |= taken
    chosen = given | {name: value for name, value in options.items() if name in given and given[name] is None}
    chosen["from_recipe"] = _shown({name: chosen[name] for name in taken if given.get(name, "") is None}) if own else ""
    chosen["maximise"] = choice(Mode, "mode", chosen["mode"]) is Mode.MAX
    _checks.check_together(chosen, chosen["maximise"])
    if chosen["monitor"] == "auto":
        chosen["monitor"] = None if chosen["validation"] is None else "val_nll"
    chosen["seed"] = integer("seed", chosen["seed"])
    chosen["checkpoint"] = None if chosen["checkpoint"] is None else Path(chosen["checkpoint"])
    chosen["clip_norm"] = None if chosen["clip_norm"] is None else float(chosen["clip_norm"])
    return Settings(**{field.name: chosen[field.name] for field in fields(Settings)})


def _recipe_options(recipe: RecipeLike, given: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe's options for these data; ``epochs`` and ``max_steps`` say how long its schedules are."""
    model, guide, epochs = given["model"], given["guide"], given["epochs"]
    require_pair(model, guide)
    examples, size = _data.sizes(given["data"], model)
    size = min(size * given["accumulate"], examples)
    lengths = [] if epochs is None else [epochs * -(-examples // size)]
    lengths += [] if given["max_steps"] is None else [given["max_steps"]]
    return recipe.fit_options(model, guide, num_data=examples, batch_size=size, max_steps=min(lengths, default=None))


def _shown(taken: Mapping[str, Any]) -> str:
    """Write on one line what a recipe gave, None left out."""
    parts = []
    for name, value in taken.items():
        if isinstance(value, torch.optim.Optimizer):
            rates = sorted({f"{group['lr']:g}" for group in value.param_groups})
            value = f"{type(value).__name__}, lr {' and '.join(rates)}"
        elif name == "scheduler":
            value = "its warm-up and decay"
        if value is not None:
            parts.append(f"{name} {value}")
    return "; ".join(parts)
