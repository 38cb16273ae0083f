"""Kernels of Gaussian processes by name."""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor


class Kernel(StrEnum):
    """The correlation of two values of f as a function of the distance r of their places, in length scales.

    >>> Kernel.MATERN12(torch.tensor([0.0, 1.0, torch.inf]))
    tensor([1.0000, 0.3679, 0.0000])
    """

    RBF = "rbf"
    """``exp(−r²/2)``: infinitely smooth."""
    MATERN12 = "matern12"
    """``exp(−r)``: continuous, nowhere smooth; on a line the past is told by the nearest neighbour."""
    MATERN32 = "matern32"
    """``(1 + √3 r) exp(−√3 r)``: once differentiable."""
    MATERN52 = "matern52"
    """``(1 + √5 r + 5r²/3) exp(−√5 r)``: twice differentiable."""

    def __call__(self, r: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the correlation at distance ``r`` ≥ 0; 0 at infinity."""
        if self is Kernel.RBF:
            return torch.exp(-0.5 * r.square())
        order = {Kernel.MATERN12: 0, Kernel.MATERN32: 1, Kernel.MATERN52: 2}[self]
        x = math.sqrt(2 * order + 1) * r.clamp_max(1e4)  # beyond it the exponential is 0, and ∞ · 0 is no number
        return [torch.ones_like(x), 1.0 + x, 1.0 + x + x.square() / 3.0][order] * torch.exp(-x)
