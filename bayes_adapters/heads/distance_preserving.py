"""A trained map of features that can neither merge unlike inputs nor tear like ones apart."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


class DistancePreserving(nn.Module):
    """``g(φ) = φ + c U relu(V φ + b)`` with ‖U‖₂ ≤ 1 and ‖V‖₂ ≤ 1: a residual block under spectral normalisation.

    The second term has the Lipschitz constant c < 1, so that for any two features::

        (1 − c) ‖φ − φ'‖  ≤  ‖g(φ) − g(φ')‖  ≤  (1 + c) ‖φ − φ'‖

    Weights are divided by their largest singular value where it is above 1; it is computed, not estimated by power
    iterations, so the bounds hold in every pass. U starts at 0: g is then the identity.

    Sources: Liu et al. 2020, arXiv 2006.10108; van Amersfoort et al. 2021, arXiv 2102.11409.

    Args:
        width: d.
        hidden: h, rows of V.
        bound: c, between 0 and 1.

    >>> block = DistancePreserving(3, 2, 0.9)
    >>> bool((block(torch.eye(3)) == torch.eye(3)).all()), [tuple(p.shape) for p in block.parameters()]
    (True, [(2, 3), (2,), (3, 2)])
    """

    def __init__(self, width: int, hidden: int, bound: float) -> None:
        super().__init__()
        inner = nn.Linear(width, hidden)
        self.down, self.bias = inner.weight, inner.bias
        self.up = nn.Parameter(torch.zeros(width, hidden))
        self.bound = bound

    def forward(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d"]:
        """Return g(φ) in the dtype of the parameters."""
        features = features.to(self.down.dtype)
        hidden = torch.relu(nn.functional.linear(features, _at_most_one(self.down), self.bias))
        return features + self.bound * nn.functional.linear(hidden, _at_most_one(self.up))


def _at_most_one(weight: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """``W / max(1, ‖W‖₂)``."""
    return weight / torch.linalg.matrix_norm(weight.float(), 2).clamp_min(1.0).to(weight.dtype)
