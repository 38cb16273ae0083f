"""A grid over the range of a distribution's draws, and its density there: what integrals over entries need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

DRAWS, GRID = 2000, 1501
"""Draws of a distribution, and points of a grid over their range."""


def axis(draws: Tensor, span: float = 8.0) -> Tensor:
    """Return a grid per entry, shape (G, *batch), ``span`` / 2 deviations wider than the draws at both ends."""
    margin = span * draws.std(0) / 2
    low, high = draws.amin(0) - margin, draws.amax(0) + margin
    return low + (high - low) * torch.linspace(0, 1, GRID, dtype=low.dtype).reshape(-1, *[1] * low.dim())


def log_density(base: Any, values: Tensor) -> Tensor:
    """Return ``log_prob``, −∞ outside the support."""
    inside = base.support.check(values)
    safe = values if bool(inside.all()) else torch.where(inside, values, base.sample())
    return torch.where(inside, base.log_prob(safe).to(values.dtype), -torch.inf)
