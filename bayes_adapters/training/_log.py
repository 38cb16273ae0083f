"""From the numbers of single steps to those of an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

STEP_METRICS = ("loss", "nll", "kl", "kl_over_nll", "kl_weight", "lr", "grad_norm", "examples_per_second")
"""In every epoch's log."""
SOMETIMES = ("scale_mean", "scale_min", "scale_max", "attention_entropy", "stable_rank")
"""In the log where the guide has scales or attends, or the structure measures its draws."""
_EXTREMES = {"scale_min": min, "scale_max": max}


def merged(parts: Iterable[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Average numbers over parts that have them, each with its weight; scale_min and scale_max are the extremes.

    >>> merged([(3, {"nll": 1.0, "scale_min": 0.1}), (1, {"nll": 5.0, "scale_min": 0.2})])
    {'nll': 2.0, 'scale_min': 0.1}
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for weight, values in parts:
        for name, value in values.items():
            found.setdefault(name, []).append((weight, value))
    return {
        name: _EXTREMES[name](value for _, value in pairs)
        if name in _EXTREMES
        else sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)
        for name, pairs in found.items()
    }


def summarise(records: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Average step records over an epoch, weighted by examples.

    >>> steps = [{"examples": 3, "nll": 1.0, "kl": 0.5}, {"examples": 1, "nll": 5.0, "kl": 0.5}]
    >>> summarise(steps, seconds=2.0)
    {'nll': 2.0, 'kl': 0.5, 'kl_over_nll': 0.25, 'examples_per_second': 2.0}
    """
    out = merged((record["examples"], record) for record in records)
    del out["examples"]
    out["kl_over_nll"] = ratio(out["kl"], out["nll"])
    out["examples_per_second"] = ratio(sum(record["examples"] for record in records), seconds)
    return out


def rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the learning rate of each parameter group as lr, lr_1 and so on."""
    return {"lr" if i == 0 else f"lr_{i}": float(group["lr"]) for i, group in enumerate(optimizer.param_groups)}


def ratio(a: float, b: float) -> float:
    """Return a / b, NaN where b is 0."""
    return a / b if b else float("nan")
