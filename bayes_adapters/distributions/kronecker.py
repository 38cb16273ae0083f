"""A root of the covariance of a matrix whose precision is a multiple of the identity plus a Kronecker product."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class DampedKronecker:
    """``R = s (λ I + G ⊗ A)^(−½)`` for an m × n matrix, its entries in the order of rows.

    With ``G = P diag(g) Pᵀ`` over rows and ``A = Q diag(a) Qᵀ`` over columns, p and k orthonormal directions each, the
    precision has the eigenvalue ``λ + g_i a_j`` along the matrix ``P_i Q_jᵀ`` and λ across all of them, so that::

        R ε = s [ ε/√λ + P ( C ∘ (Pᵀ ε Q) ) Qᵀ ],   C_ij = (λ + g_i a_j)^(−½) − λ^(−½)
        log det R = m n (log s − ½ log λ) − ½ Σ_ij log(1 + g_i a_j / λ)
        Var X_ij = s² [ 1/λ − Σ_uv P_iu² (1/λ − 1/(λ + g_u a_v)) Q_jv² ]

    R is symmetric. λ > 0 alone is no Kronecker product: a matrix normal has the covariance ``G⁻¹ ⊗ A⁻¹``, which is its
    limit for λ → 0 where both are of full rank. It holds m p + n k numbers, and makes no matrix of m n rows.

    Source: Ritter, Botev and Barber 2018, "A scalable Laplace approximation for neural networks"; with the eigenvalues
    of the damped product, as here, Immer et al. 2021, arXiv 2104.04975.

    Args:
        rows: P, shape (m, p).
        along_rows: g ≥ 0, shape (p,).
        columns: Q, shape (n, k).
        along_columns: a ≥ 0, shape (k,).
        precision: λ, shape ().
        scale: s, shape ().

    >>> eye = torch.eye(2)
    >>> root = DampedKronecker(eye, torch.tensor([3.0, 0.0]), eye, torch.tensor([5.0, 1.0]), torch.tensor(1.0))
    >>> root.variance()  # 1 / (1 + 3 · 5), 1 / (1 + 3 · 1), 1, 1
    tensor([0.0625, 0.2500, 1.0000, 1.0000])
    """

    def __init__(
        self,
        rows: Float[Tensor, "m p"],
        along_rows: Float[Tensor, " p"],
        columns: Float[Tensor, "n k"],
        along_columns: Float[Tensor, " k"],
        precision: Float[Tensor, ""],
        scale: Float[Tensor, ""] | None = None,
    ) -> None:
        self.rows, self.columns, self.precision = rows, columns, precision
        self.curvature = along_rows[:, None] * along_columns
        self.scale = torch.ones_like(precision) if scale is None else scale

    @property
    def size(self) -> int:
        return len(self.rows) * len(self.columns)

    def times(self, noise: Float[Tensor, "*batch mn"]) -> Float[Tensor, "*batch mn"]:
        return self.scale * self._along(noise, (self.precision + self.curvature).rsqrt(), self.precision.rsqrt())

    def solve(self, value: Float[Tensor, "*batch mn"]) -> Float[Tensor, "*batch mn"]:
        return self._along(value, (self.precision + self.curvature).sqrt(), self.precision.sqrt()) / self.scale

    def log_det(self) -> Float[Tensor, ""]:
        flat = self.size * (self.scale.log() - 0.5 * self.precision.log())
        return flat - 0.5 * torch.log1p(self.curvature / self.precision).sum()

    def variance(self) -> Float[Tensor, " mn"]:
        narrower = 1.0 / self.precision - 1.0 / (self.precision + self.curvature)
        kept = 1.0 / self.precision - self.rows.square() @ narrower @ self.columns.square().mT
        return (self.scale.square() * kept).flatten()

    def _along(self, value: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        """Multiply by ``inside`` along the directions and by ``outside`` across them."""
        matrix = value.unflatten(-1, (len(self.rows), len(self.columns)))
        along = (inside - outside) * (self.rows.mT @ matrix @ self.columns)
        return (outside * matrix + self.rows @ along @ self.columns.mT).flatten(-2)
