"""A square root of covariances that differ from a multiple of the identity in a few rows times columns."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class Induced:
    """``R = o (I − Q Qᵀ) + Q C Qᵀ``, ``Q = P ⊗ S`` with orthonormal columns: K matrices of m rows and n columns.

    The covariance ``R Rᵀ = o² (I − Q Qᵀ) + Q C Cᵀ Qᵀ`` is C Cᵀ within a subspace of a · b dimensions and o² times the
    identity outside it. A root of :class:`bayes_adapters.distributions.StructuredGaussian`; Q is never made.

    Args:
        rows: P, orthonormal columns, shape (K, m, a).
        columns: S, orthonormal columns, shape (K, n, b).
        inner: C, lower triangular with a positive diagonal, shape (K, a · b, a · b).
        outside: o > 0, shape (K,).

    >>> root = Induced(torch.eye(2)[None, :, :1], torch.eye(2)[None], 3.0 * torch.eye(2)[None], torch.tensor([0.5]))
    >>> root.variance().tolist(), root.solve(root.times(torch.ones(4))).tolist()
    ([9.0, 9.0, 0.25, 0.25], [1.0, 1.0, 1.0, 1.0])
    """

    def __init__(
        self,
        rows: Float[Tensor, "K m a"],
        columns: Float[Tensor, "K n b"],
        inner: Float[Tensor, "K c c"],
        outside: Float[Tensor, " K"],
    ) -> None:
        self.rows, self.columns, self.inner, self.outside = rows, columns, inner, outside

    @property
    def size(self) -> int:
        return self.rows.shape[0] * self.rows.shape[1] * self.columns.shape[1]

    def times(self, noise: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        x, outside = self._cut(noise), self.outside[:, None, None]
        within = self._read(x)
        return (outside * x + self._write(self.inner @ within - outside * within)).flatten(-3)

    def solve(self, value: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        x, outside = self._cut(value), self.outside[:, None, None]
        within = self._read(x)
        solved = torch.linalg.solve_triangular(self.inner, within, upper=False)
        return (x / outside + self._write(solved - within / outside)).flatten(-3)

    def log_det(self) -> Float[Tensor, ""]:
        rest = self.rows.shape[1] * self.columns.shape[1] - self.inner.shape[-1]
        return self.inner.diagonal(dim1=-2, dim2=-1).log().sum() + rest * self.outside.log().sum()

    def variance(self) -> Float[Tensor, " n"]:
        inner = self.inner.unflatten(-2, (self.rows.shape[-1], self.columns.shape[-1]))
        within = torch.einsum("kia,kjb,kabt->kijt", self.rows, self.columns, inner).square().sum(-1)
        covered = self.rows.square().sum(-1)[:, :, None] * self.columns.square().sum(-1)[:, None, :]
        return (within + self.outside[:, None, None].square() * (1.0 - covered).clamp_min(0.0)).flatten()

    def _cut(self, value: Tensor) -> Float[Tensor, "*batch K m n"]:
        return value.unflatten(-1, (self.rows.shape[0], self.rows.shape[1], self.columns.shape[1]))

    def _read(self, x: Float[Tensor, "*batch K m n"]) -> Float[Tensor, "*batch K c 1"]:
        return (self.rows.mT @ x @ self.columns).flatten(-2)[..., None]

    def _write(self, within: Float[Tensor, "*batch K c 1"]) -> Float[Tensor, "*batch K m n"]:
        cut = within[..., 0].unflatten(-1, (self.rows.shape[-1], self.columns.shape[-1]))
        return self.rows @ cut @ self.columns.mT
