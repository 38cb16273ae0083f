"""Gaussians over all weights of a model whose covariance has a structure: blocks, or rows times columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


@runtime_checkable
class Root(Protocol):
    """An invertible square root R of the covariance ``R Rᵀ`` of n entries of w, K blocks of equal size in a row."""

    @property
    def size(self) -> int:
        """The number n of entries."""
        ...

    def times(self, noise: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Return ``R noise``."""
        ...

    def solve(self, value: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        """Return ``R⁻¹ value``."""
        ...

    def log_det(self) -> Float[Tensor, ""]:
        """Return log |det R|."""
        ...

    def variance(self) -> Float[Tensor, " n"]:
        """Return the diagonal of ``R Rᵀ``."""
        ...


class Blocks:
    """``R = diag(L_1, …, L_K)``: entries of one block may all correlate, entries of different blocks do not.

    Args:
        tril: L, lower triangular with a positive diagonal, shape (K, b, b).

    >>> root = Blocks(torch.tensor([[[1.0, 0.0], [3.0, 4.0]]]))
    >>> root.variance(), root.solve(root.times(torch.tensor([1.0, 2.0])))
    (tensor([ 1., 25.]), tensor([1., 2.]))
    """

    def __init__(self, tril: Float[Tensor, "K b b"]) -> None:
        self.tril = tril

    @property
    def size(self) -> int:
        return self.tril.shape[0] * self.tril.shape[1]

    def times(self, noise: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        return (self.tril @ self._cut(noise)).flatten(-3)

    def solve(self, value: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        return torch.linalg.solve_triangular(self.tril, self._cut(value), upper=False).flatten(-3)

    def log_det(self) -> Float[Tensor, ""]:
        return self.tril.diagonal(dim1=-2, dim2=-1).log().sum()

    def variance(self) -> Float[Tensor, " n"]:
        return self.tril.square().sum(-1).flatten()

    def _cut(self, value: Tensor) -> Float[Tensor, "*batch K b 1"]:
        return value.unflatten(-1, self.tril.shape[:2])[..., None]


class RowsAndColumns:
    """``vec X_k = (R_k ⊗ C_k) vec ε``, that is ``X_k = R_k ε C_kᵀ``: K matrices of m rows and n columns.

    The covariance of X_ij and X_i'j' is ``(R Rᵀ)_ii' (C Cᵀ)_jj'``. A side is a lower triangular matrix with a positive
    diagonal, or that diagonal alone where its entries do not correlate.

    Args:
        rows: R, shape (K, m, m), or (K, m) for a diagonal one.
        columns: C, shape (K, n, n), or (K, n).

    >>> root = RowsAndColumns(torch.tensor([[2.0, 3.0]]), torch.tensor([[[1.0, 0.0], [1.0, 1.0]]]))
    >>> root.variance().tolist()
    [4.0, 8.0, 9.0, 18.0]
    """

    def __init__(self, rows: Float[Tensor, "K m ..."], columns: Float[Tensor, "K n ..."]) -> None:
        self.rows, self.columns = rows, columns

    @property
    def size(self) -> int:
        return self.rows.shape[0] * self.rows.shape[1] * self.columns.shape[1]

    def times(self, noise: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        return _times(self.columns, _times(self.rows, self._cut(noise)).mT).mT.flatten(-3)

    def solve(self, value: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
        return _solve(self.columns, _solve(self.rows, self._cut(value)).mT).mT.flatten(-3)

    def log_det(self) -> Float[Tensor, ""]:
        m, n = self.rows.shape[1], self.columns.shape[1]
        return n * _diagonal(self.rows).log().sum() + m * _diagonal(self.columns).log().sum()

    def variance(self) -> Float[Tensor, " n"]:
        return (_variance(self.rows)[:, :, None] * _variance(self.columns)[:, None, :]).flatten()

    def _cut(self, value: Tensor) -> Float[Tensor, "*batch K m n"]:
        return value.unflatten(-1, (self.rows.shape[0], self.rows.shape[1], self.columns.shape[1]))


def _times(side: Tensor, x: Tensor) -> Tensor:
    return side @ x if side.dim() == 3 else side[..., None] * x


def _solve(side: Tensor, x: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(side, x, upper=False) if side.dim() == 3 else x / side[..., None]


def _diagonal(side: Tensor) -> Tensor:
    return side.diagonal(dim1=-2, dim2=-1) if side.dim() == 3 else side


def _variance(side: Tensor) -> Tensor:
    return side.square().sum(-1) if side.dim() == 3 else side.square()


class StructuredGaussian(TorchDistribution):
    """``w = μ + P R ε``, ``ε ~ N(0, I)``: R stands in pieces along the diagonal, P puts entries into their places.

    Density and entropy, nats, D entries::

        log q(w) = −½ ‖R⁻¹ Pᵀ (w − μ)‖² − log |R| − ½ D log 2π        H = ½ D (1 + log 2π) + log |R|

    No matrix larger than a piece's is made.

    Args:
        loc: μ, shape (D,).
        roots: the pieces of R, sizes summing to D.
        order: entry ``order[i]`` of w is entry i of the pieces in a row, shape (D,); None where they are in order.

    Batch shape (), event shape (D,).

    >>> eye = torch.eye(2)
    >>> q = StructuredGaussian(torch.zeros(3), [Blocks(2.0 * eye[None]), Blocks(torch.ones(1, 1, 1))])
    >>> exact = torch.distributions.Normal(0.0, q.stddev).entropy().sum()
    >>> q.variance.tolist(), torch.allclose(q.entropy(), exact)
    ([4.0, 4.0, 1.0], True)
    """

    arg_constraints = {"loc": constraints.real_vector}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, " D"],
        roots: Sequence[Root],
        order: Int[Tensor, " D"] | None = None,
        batch_shape: torch.Size = torch.Size(),  # noqa: B008
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.roots, self.order = loc, tuple(roots), order
        super().__init__(batch_shape, loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """μ."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """The diagonal of the covariance."""
        return self._placed(torch.cat([root.variance() for root in self.roots])).expand(self.mean.shape)

    def from_noise(self, noise: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Return the draw of these numbers from N(0, 1)."""
        pieces = noise.split([root.size for root in self.roots], -1)
        return self.loc + self._placed(torch.cat([r.times(n) for r, n in zip(self.roots, pieces, strict=True)], -1))

    def projected(self, rows: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D"]:
        """Return ``Rᵀ Pᵀ v`` for each row v: ``Cov(v·w, v'·w)`` is the product of two of them.

        It is the gradient of ``v · P R ε`` with respect to ε, so that a root need not know its transpose.
        """
        graph = torch.is_grad_enabled()
        with torch.enable_grad():
            noise = torch.zeros_like(rows, requires_grad=True)
            along = (self.from_noise(noise) - self.loc).mul(rows).sum()
            return torch.autograd.grad(along, noise, create_graph=graph)[0]

    def from_uniforms(self, shape: Any, uniforms: Callable[[int], Tensor]) -> Tensor:
        """Return draws of this ``shape``; ``uniforms(n)`` has n of them for each of its two leading entries."""
        return self.from_noise(torch.special.ndtri(uniforms(math.prod(shape[2:]))).reshape(shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Float[Tensor, "..."]:  # noqa: B008
        """Draw."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        return self.from_noise(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def log_prob(self, value: Float[Tensor, "... D"]) -> Float[Tensor, "..."]:
        """Return log q, nats."""
        apart = value - self.loc
        pieces = (apart if self.order is None else apart[..., self.order]).split([r.size for r in self.roots], -1)
        squares = [r.solve(piece).square().sum(-1) for r, piece in zip(self.roots, pieces, strict=True)]
        found = -0.5 * sum(squares) - self._log_det() - 0.5 * len(self.loc) * math.log(2 * math.pi)
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Return H, nats."""
        entropy = self._log_det() + 0.5 * len(self.loc) * (1 + math.log(2 * math.pi))
        return entropy.expand(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StructuredGaussian:
        """Return the same with another batch shape."""
        return StructuredGaussian(self.loc, self.roots, self.order, torch.Size(batch_shape), validate_args=False)

    def _log_det(self) -> Tensor:
        return torch.stack([root.log_det() for root in self.roots]).sum()

    def _placed(self, pieces: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        return pieces if self.order is None else torch.empty_like(pieces).index_copy(-1, self.order, pieces)
