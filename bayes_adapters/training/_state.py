"""Where a run stands."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class RunState:
    """Everything about a run but weights, optimiser and scheduler, after its last complete optimiser step."""

    epoch: int = 0  # the one that runs
    batches: int = 0  # micro-batches of it that are used up
    step: int = 0  # optimiser steps taken since the run began
    records: list[dict[str, float]] = field(default_factory=list)  # logged numbers of each step of this epoch
    seconds: float = 0.0  # that these steps took
    history: list[dict[str, float]] = field(default_factory=list)  # the log of each finished epoch
    best_epoch: int | None = None  # None before the first value of the monitored metric
    best_value: float | None = None
    stale: int = 0  # finished epochs since the best one
    best: dict[str, Tensor] | None = None  # the trained tensors at the best epoch
    generators: list[Tensor] = field(default_factory=list)  # torch's random states; none at the start of an epoch
    host: dict[str, Any] = field(default_factory=dict)  # Python's and numpy's

    def watch(self, value: float, maximise: bool, tensors: Mapping[str, Tensor]) -> None:
        """Take ``tensors`` for the best ones so far if the running epoch's ``value`` is better; NaN never is."""
        if self.best is not None and any(self.best[name].shape != tensor.shape for name, tensor in tensors.items()):
            self.best, self.best_epoch, self.best_value, self.stale = None, None, None, 0  # ranks were taken out
        sign = -1.0 if maximise else 1.0
        if sign * value < (math.inf if self.best_value is None else sign * self.best_value):
            self.best_epoch, self.best_value, self.stale = self.epoch, value, 0
            self.best = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        else:
            self.stale += 1

    def next_epoch(self, log: dict[str, float]) -> None:
        """Close the running epoch with its log."""
        self.history.append(log)
        self.epoch, self.batches, self.records, self.seconds = self.epoch + 1, 0, [], 0.0
        self.generators, self.host = [], {}


def copy_into(targets: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy ``values`` into ``targets``, name by name; both have the same names."""
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])
