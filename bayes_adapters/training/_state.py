"""Where a run stands, and nested state dictionaries as JSON plus tensors."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.training._checkpoint_checks import damaged, not_kept


@dataclass
class RunState:
    """Everything about a run but weights, optimiser and scheduler, after its last complete optimiser step.

    Args:
        epoch: the epoch that runs, from 0.
        batches: micro-batches of this epoch that are used up.
        step: optimiser steps taken.
        records: one dictionary of logged numbers for each step of this epoch.
        seconds: time this epoch's steps took.
        history: one dictionary for each finished epoch.
        best_epoch, best_value: of the monitored metric; None before the first.
        stale: finished epochs since the best one.
        best: the trained tensors at the best epoch.
        generators: states of torch's random generators; empty at the start of an epoch.
        host: those of Python's and numpy's.
    """

    epoch: int = 0
    batches: int = 0
    step: int = 0
    records: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    best_value: float | None = None
    stale: int = 0
    best: dict[str, Tensor] | None = None
    generators: list[Tensor] = field(default_factory=list)
    host: dict[str, Any] = field(default_factory=dict)

    def next_epoch(self, log: dict[str, float]) -> None:
        """Close the running epoch with its log."""
        self.history.append(log)
        self.epoch, self.batches, self.records, self.seconds = self.epoch + 1, 0, [], 0.0
        self.generators, self.host = [], {}


def encode(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Turn a nested state into JSON; tensors go to ``tensors``, copied to the CPU, under their path.

    Raises:
        ConfigError: a value is neither a number, string, tensor, list, tuple nor dictionary of such.

    >>> tensors = {}
    >>> tree = {"step": torch.tensor(3.), 0: (1, float("inf")), "name": None}
    >>> decode(encode(tree, tensors), tensors) == tree
    True
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, Tensor):
        tensors[path] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": path}
    if isinstance(value, list | tuple):
        parts = [encode(v, tensors, f"{path}/{i}") for i, v in enumerate(value)]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, dict):
        kind = "counter" if isinstance(value, Counter) else "dict"
        return {kind: [[encode(k, tensors), encode(v, tensors, f"{path}/{k}")] for k, v in value.items()]}
    raise not_kept(path, value)


def decode(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert :func:`encode`.

    Raises:
        AdapterFileError: the tree is not one that :func:`encode` makes.
    """
    if isinstance(tree, list):
        return [decode(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    try:
        ((kind, value),) = tree.items()
        if kind == "tensor":
            return tensors[value]
        if kind == "float":
            return float(value)
        if kind == "tuple":
            return tuple(decode(v, tensors) for v in value)
        pairs = {decode(k, tensors): decode(v, tensors) for k, v in value}
        return {"dict": dict, "counter": Counter}[kind](pairs)
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(tree, error) from error


def copy_into(targets: dict[str, Tensor], values: dict[str, Tensor]) -> None:
    """Copy ``values`` into ``targets``, name by name; both have the same names."""
    with torch.no_grad():
        for name, target in targets.items():
            target.copy_(values[name])
