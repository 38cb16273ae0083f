"""A Gaussian over matrices, with the precision of a prior plus a Kronecker product each; the prior may be changed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.distributions._checks import require_curvature, require_sides
from bayes_adapters.distributions._curved import Curved
from bayes_adapters.distributions.kronecker import DampedKronecker
from bayes_adapters.distributions.structured import StructuredGaussian
from bayes_adapters.errors import positive_number

Sides = tuple[Float[Tensor, "m p"], Float[Tensor, " p"], Float[Tensor, "n k"], Float[Tensor, " k"]]
"""P, g, Q and a of one matrix; see :class:`~bayes_adapters.distributions.kronecker.DampedKronecker`."""
_NAMES = ("rows", "along_rows", "columns", "along_columns")


class CurvedMatrices(Curved):
    """``vec X_b ~ N(m_b, s_b² (λ I + G_b ⊗ A_b)⁻¹)`` for each of several matrices that stand in a row in w.

    All of it is buffers: it is saved and loaded, and not trained. No matrix of as many rows as one has entries is made.

    Args:
        start: m at the start, all matrices in a row, shape (D,).
        sides: (m, n, p, k) of each matrix: its rows and columns, and the directions of curvature along each.
        scale: s at the start.

    Raises:
        ConfigError: other sizes than D, or more directions than rows or columns.

    >>> gaussian = CurvedMatrices(torch.zeros(6), [(2, 3, 0, 0)], scale=0.5)
    >>> gaussian.rescale(4.0)
    >>> gaussian().variance[:2]
    tensor([0.0625, 0.0625])
    """

    def __init__(self, start: Float[Tensor, " D"], sides: Sequence[Sequence[int]], scale: float) -> None:
        super().__init__()
        positive_number("scale", scale)
        self.sides = require_sides(sides, len(start))
        self.register_buffer("loc", start)
        self.register_buffer("deviation", start.new_full((len(self.sides),), scale))
        self.register_buffer("log_precision", start.new_zeros(()))
        for number, (m, n, p, k) in enumerate(self.sides):
            self.register_buffer(f"rows_{number}", torch.eye(m, p, device=start.device))
            self.register_buffer(f"along_rows_{number}", start.new_zeros(p))
            self.register_buffer(f"columns_{number}", torch.eye(n, k, device=start.device))
            self.register_buffer(f"along_columns_{number}", start.new_zeros(k))

    def place(self, loc: Float[Tensor, " D"], deviation: Float[Tensor, " b"], sides: Sequence[Sides]) -> None:
        """Set m, and s and the curvature of each matrix.

        Raises:
            ConfigError: an entry of g or a is negative, NaN or infinite: the precision would not be positive definite.
        """
        require_curvature(deviation, [along for side in sides for along in (side[1], side[3])])
        held = {"loc": loc, "deviation": deviation}
        for number, side in enumerate(sides):
            held |= {f"{name}_{number}": value for name, value in zip(_NAMES, side, strict=True)}
        self._hold(held)

    def forward(self) -> StructuredGaussian:
        """Return the Gaussian: batch shape (), event shape (D,)."""
        return StructuredGaussian(self.get_buffer("loc"), self._roots(), validate_args=False)

    def projected(self, rows: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D"]:
        """Return ``R v`` for each row v, R being the symmetric root: ``Cov(v·w, v'·w)`` is the product of two."""
        roots = self._roots()
        pieces = rows.split([root.size for root in roots], -1)
        return torch.cat([root.times(piece) for root, piece in zip(roots, pieces, strict=True)], -1)

    def _roots(self) -> list[DampedKronecker]:
        precision, deviation = self.get_buffer("log_precision").exp(), self.get_buffer("deviation")
        roots = []
        for number in range(len(self.sides)):
            rows, g, columns, a = (self.get_buffer(f"{name}_{number}") for name in _NAMES)
            roots.append(DampedKronecker(rows, g, columns, a, precision, deviation[number]))
        return roots
