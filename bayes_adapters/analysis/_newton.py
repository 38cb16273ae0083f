"""Newton's method for convex functions of a few numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Evaluate = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Parameters (P,) → value (), gradient (P,) and Hessian (P, P), float64."""
_MOST_STEPS = 200
_FLAT = 1e-10  # smallest eigenvalue over the largest: below, the function is flat along a line


def minimise(evaluate: Evaluate, start: Float[Tensor, " P"]) -> Float[Tensor, " P"] | None:
    """Return where a convex function is smallest, exact to rounding; None where it has no single finite minimum.

    Args:
        evaluate: the function.
        start: where the search begins, shape (P,), float64.

    >>> def parabola(x):
    ...     return (x - 3).square().sum(), 2 * (x - 3), 2 * torch.eye(1, dtype=torch.float64)
    >>> minimise(parabola, torch.zeros(1, dtype=torch.float64))
    tensor([3.], dtype=torch.float64)
    """
    at = start
    for _ in range(_MOST_STEPS):
        value, gradient, hessian = evaluate(at)
        curvature = torch.linalg.eigvalsh(hessian)
        if not bool(curvature[0] > _FLAT * curvature[-1]):
            return None
        step = -torch.linalg.solve(hessian, gradient)
        slope = gradient @ step
        rounding = 1e-14 * value.abs()
        share = 1.0
        while share > 1e-10 and not bool(evaluate(at + share * step)[0] <= value + 1e-4 * share * slope + rounding):
            share /= 2
        at = at + share * step
        if bool(step.abs().max() <= 1e-10 * (1 + at.abs().max())):
            return at
    return None
