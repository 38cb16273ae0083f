"""The marginal likelihood of a Laplace approximation as a function of the prior's precision, and its maximum.

In the prior's unit, u = S⁻¹ (m − μ), the prior N(μ, S²/λ) and curvatures e_i ≥ 0 of −log p(data | w)::

    log Z(λ) = log p(data | m) − ½ λ ‖u‖² − ½ Σ_i log(1 + e_i / λ)
    d log Z / d log λ = ½ (γ − λ ‖u‖²),   γ = Σ_i e_i / (e_i + λ)

γ is the number of directions that the data determine. Where it is exactly λ ‖u‖² the evidence is stationary.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

GRID = tuple(10.0**power for power in range(-8, 9))
"""Prior precisions between which the maximum is sought."""
_STEPS = 60


def log_evidence(precision: float, log_likelihood: float, norm: float, curvatures: Float[Tensor, " n"]) -> float:
    """Return log Z, nats; ``norm`` is ‖u‖²."""
    return log_likelihood - 0.5 * precision * norm - 0.5 * float(torch.log1p(curvatures / precision).sum())


def slope(precision: float, norm: float, curvatures: Float[Tensor, " n"]) -> float:
    """Return d log Z / d log λ."""
    return 0.5 * (determined(precision, curvatures) - precision * norm)


def determined(precision: float, curvatures: Float[Tensor, " n"]) -> float:
    """Return γ."""
    return float((curvatures / (curvatures + precision)).sum())


def maximum(norm: float, curvatures: Float[Tensor, " n"]) -> float:
    """Return the λ with the greatest evidence, or an end of :data:`GRID`.

    The best of the grid comes first, for there may be several maxima; then log λ is bisected around it.
    """
    values = [log_evidence(precision, 0.0, norm, curvatures) for precision in GRID]
    best = max(range(len(GRID)), key=values.__getitem__)
    if (best == 0 and slope(GRID[0], norm, curvatures) <= 0.0) or (
        best == len(GRID) - 1 and slope(GRID[-1], norm, curvatures) >= 0.0
    ):
        return GRID[best]
    low, high = math.log(GRID[max(best - 1, 0)]), math.log(GRID[min(best + 1, len(GRID) - 1)])
    for _ in range(_STEPS):
        middle = 0.5 * (low + high)
        if slope(math.exp(middle), norm, curvatures) > 0.0:
            low = middle
        else:
            high = middle
    return math.exp(0.5 * (low + high))
