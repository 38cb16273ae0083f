"""The options of ``fit`` that are plain values, resolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bayes_adapters.training import _log
from bayes_adapters.training._monitor_checks import check_monitor, require_watched

OnStep = Callable[[int, Any, Any, torch.optim.Optimizer], None]
"""(step, model, guide, optimizer) → None"""


@dataclass(frozen=True)
class Settings:
    """The options of :func:`bayes_adapters.training.fit` that are plain values."""

    epochs: int | None
    max_steps: int | None
    clip_norm: float | None
    accumulate: int
    num_samples: int
    monitor: str | None
    maximise: bool
    patience: int | None
    directory: Path | None
    checkpoint_every: int | None
    seed: int
    autocast: torch.dtype | None
    log_every: int


def monitored(monitor: str | None, patience: int | None, validation: bool, evaluate: bool, groups: int) -> str | None:
    """Return the metric to watch, ``"auto"`` resolved.

    Args:
        monitor: what the caller asked for.
        patience: epochs without progress, which need a metric.
        validation: whether there is any.
        evaluate: whether there are metrics of the caller's own.
        groups: the optimiser's parameter groups, each with a rate in the log.

    Raises:
        ConfigError: a metric that no log will have, or patience without one.
    """
    if monitor == "auto":
        monitor = "val_nll" if validation else None
    require_watched(monitor, patience)
    if monitor is not None and not evaluate:
        rates = [f"lr_{i}" for i in range(1, groups)]
        known = [*_log.STEP_METRICS, *rates, *_log.SOMETIMES, *(["val_nll"] if validation else [])]
        check_monitor(monitor, known)
    return monitor
