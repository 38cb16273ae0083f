"""The curvature of −log p(data | w) at one w: a generalised Gauss-Newton matrix, summed example by example.

H = Σ_n J_nᵀ Λ_n J_n, with J_n the Jacobian of an example's outputs f and Λ_n = −∂² log p(y_n | f) / ∂f², whose negative
eigenvalues, if it has any, count as 0. With Λ_n = R_n R_nᵀ an example adds the columns ``J_nᵀ R_n``: one backward pass
for each. Padding has no columns, for its outputs are not scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.devices import float64
from bayes_adapters.inference.linearised import Tangent
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.surgery._laplace_checks import (
    require_curved,
    require_curved_density,
    require_finite_curvature,
    require_targets,
)

_SMALLEST = 1e-7
"""Eigenvalues below this part of the largest are rounding, in float32."""


class Structure(StrEnum):
    """Which part of the curvature is kept."""

    DIAGONAL = "diagonal"
    """Its diagonal: D numbers; no entry correlates with another."""
    BLOCK = "block"
    """One block per site and layer, dense within: Σ_b D_b² numbers."""
    LOW_RANK = "low_rank"
    """Its k largest directions over all entries, found as the data go by: D k numbers. Exact where it has no more."""
    KRONECKER = "kronecker"
    """One Kronecker product per site and layer (KFAC): of an n × k matrix n² + k² numbers, and no D_b²."""
    FULL = "full"
    """All of it: D² numbers."""


Pair = tuple[Float[Tensor, "_ _"], Float[Tensor, " _"]]
"""Orthonormal directions and the curvature along each."""


class Columns:
    """What a curvature that is a sum over columns needs of a pass: the columns, and nothing else."""

    def watching(self) -> AbstractContextManager[Any]:
        """A context in which an example's pass is seen."""
        return nullcontext()

    def pulled(
        self, tangent: Tangent, entries: Tensor, leaves: list[Tensor], weights: Sequence[Tensor]
    ) -> list[Float[Tensor, " D"]]:
        """Return ``Jᵀ v`` for every v of ``weights``."""
        return [tangent.pulled(entries, leaves, one) for one in weights]


class Diagonal(Columns):
    """``Σ c²`` over columns c. As every curvature it has ``add(columns)``, and after the last what was gathered."""

    def __init__(self, size: int) -> None:
        self.diagonal = torch.zeros(size, dtype=torch.float64)

    def add(self, columns: Float[Tensor, "D c"]) -> None:
        self.diagonal += columns.square().sum(1).cpu()

    def eigen(self) -> list[Pair]:
        return []

    @property
    def trace(self) -> float:
        """The trace of the whole curvature."""
        return float(self.diagonal.sum())

    @property
    def kept(self) -> float:
        """The share of the diagonal's sum that is kept."""
        return 1.0


class Dense(Columns):
    """``Σ c cᵀ`` within each of the blocks (first, last), on the CPU in float64."""

    def __init__(self, blocks: Sequence[tuple[int, int]]) -> None:
        self.blocks = blocks
        self.matrices = [torch.zeros(last - first, last - first, dtype=torch.float64) for first, last in blocks]

    def add(self, columns: Float[Tensor, "D c"]) -> None:
        columns = columns.cpu()
        for matrix, (first, last) in zip(self.matrices, self.blocks, strict=True):
            matrix.addmm_(columns[first:last], columns[first:last].mT)

    def eigen(self) -> list[Pair]:
        return [largest(matrix, len(matrix)) for matrix in self.matrices]

    @property
    def trace(self) -> float:
        return sum(float(matrix.trace()) for matrix in self.matrices)

    @property
    def kept(self) -> float:
        return 1.0


class LowRank(Columns):
    """The ``rank`` largest directions of ``Σ c cᵀ``: columns are gathered and, when there are many, compressed."""

    def __init__(self, size: int, rank: int) -> None:
        self.rank = min(rank, size)
        self.columns = torch.zeros(size, 0, dtype=torch.float64)
        self.waiting: list[Tensor] = []
        self.trace = 0.0

    def add(self, columns: Float[Tensor, "D c"]) -> None:
        self.trace += float(columns.square().sum())
        self.waiting.append(columns.cpu())
        if sum(part.shape[1] for part in self.waiting) > self.rank:
            self._compress()

    def eigen(self) -> list[Pair]:
        self._compress()
        curvature = self.columns.square().sum(0)
        return [(self.columns / curvature.sqrt(), curvature)]

    @property
    def kept(self) -> float:
        """The share of the trace that the directions kept hold; 1 where nothing was lost."""
        self._compress()
        return min(float(self.columns.square().sum()) / self.trace, 1.0) if self.trace else 1.0

    def _compress(self) -> None:
        if not self.waiting:
            return
        whole = torch.cat([self.columns, *self.waiting], 1)
        self.waiting = []
        if whole.shape[1] == 0:
            return
        vectors, _ = largest(whole.mT @ whole, self.rank)
        self.columns = whole @ vectors  # orthogonal, of squared length ``values``


def largest(matrix: Float[Tensor, "b b"], count: int) -> Pair:
    """The ``count`` largest eigenpairs, those that are rounding left out, but never all of them."""
    values, vectors = torch.linalg.eigh(matrix)
    keep = values > _SMALLEST * _SMALLEST * values.max().clamp_min(0.0)
    keep[: max(len(values) - count, 0)] = False
    keep[-1] = True
    return vectors[:, keep], values[keep].clamp_min(0.0)


@runtime_checkable
class Curvature(Protocol):
    """What is gathered example by example, and its trace."""

    def watching(self) -> AbstractContextManager[Any]: ...

    def pulled(
        self, tangent: Tangent, entries: Tensor, leaves: list[Tensor], weights: Sequence[Tensor]
    ) -> list[Float[Tensor, " D"]]: ...

    def add(self, columns: Float[Tensor, "D c"]) -> None: ...

    @property
    def trace(self) -> float: ...


@dataclass
class Scores:
    """What one pass over the data found besides the curvature.

    Args:
        log_likelihood: Σ_n log p(y_n | f_n), nats.
        gradient: its gradient with respect to w, shape (D,), float64.
        count: how many examples there were.
    """

    log_likelihood: float
    gradient: Tensor
    count: int


@torch.enable_grad()
def gather(
    model: AdapterModel,
    tangent: Tangent,
    data: Batch | Iterable[Batch],
    unit: Float[Tensor, " D"],
    curvature: Curvature,
) -> Scores:
    """Add every example's columns, each entry times its ``unit``, to the curvature.

    Raises:
        DataError: no batch, or one without targets.
        NonFiniteError: a column is NaN or infinite.
        ConfigError: the likelihood has no curvature in its outputs.
    """
    require_curved_density(model)
    device = next(model.parameters()).device
    scores = Scores(0.0, torch.zeros_like(unit), 0)
    for batch in require_targets(data):
        batch = batch.to(device)
        targets: Any = batch.targets
        model.likelihood.accept(targets)
        for place in range(batch.size):
            one = batch[place : place + 1]
            with curvature.watching():
                outputs, leaves = tangent.outputs(one)
            require_finite_curvature(model, outputs.detach(), scores.count + place, "output")
            score, slope, root = bend(model, outputs.detach(), one)
            pulled = curvature.pulled(tangent, outputs.flatten(), leaves, (slope, *root))
            rows = float64(torch.stack(pulled)).to(unit.device)
            require_finite_curvature(model, rows, scores.count + place)
            scores.log_likelihood += score
            scores.gradient += rows[0]
            curvature.add((rows[1:] * unit).mT)
        scores.count += batch.size
    require_curved(model, curvature.trace, scores.count)
    return scores


@torch.enable_grad()
def bend(model: AdapterModel, outputs: Float[Tensor, "1 *T K"], batch: Batch) -> tuple[float, Tensor, list[Tensor]]:
    """Return log p(y | f), its gradient, and the columns of R with R Rᵀ = −∂² log p / ∂f², for one example.

    Args:
        model: its likelihood scores.
        outputs: f; where each token has a target that depends on its own outputs only, those of different tokens have
            no joint curvature, and R has a block per token; otherwise it is of all outputs of the example.
        batch: the example.

    Returns:
        The score; the gradient and every column as a vector over all entries of ``outputs``.
    """
    outputs = outputs.detach().requires_grad_()
    fn = model.likelihood_of(outputs, batch)
    score = fn.log_prob(model.likelihood.observation(fn, batch.targets)).sum()
    (slope,) = torch.autograd.grad(score, outputs, create_graph=True)
    # What bends together, (blocks, size): a token's outputs, or all. Blocks do not mix, so the sum over them of
    # an entry of the slope has each block's own second derivatives.
    apart = model.likelihood.apart or not model.likelihood.per_token
    blocks = slope.flatten(0, -2) if apart else slope.reshape(1, -1)
    second = torch.stack([_slope(part.sum(), outputs).reshape_as(blocks) for part in blocks.unbind(-1)], -2)
    bent = -0.5 * float64(second + second.mT)
    values, vectors = torch.linalg.eigh(bent)
    values = torch.where(values > _SMALLEST * values[..., -1:].clamp_min(0.0), values, 0.0)
    columns = []
    for row, (scales, along) in enumerate(zip(values, vectors, strict=True)):
        for number in scales.nonzero()[:, 0].tolist():
            column = torch.zeros_like(values)
            column[row] = along[:, number] * scales[number].sqrt()
            columns.append(column.flatten())
    return float(score.detach()), slope.detach().flatten(), columns


def _slope(value: Tensor, outputs: Tensor) -> Tensor:
    """The gradient; 0 where the value does not depend on the outputs, as of a density that is linear in them."""
    if not value.requires_grad:
        return torch.zeros_like(outputs)
    (found,) = torch.autograd.grad(value, outputs, retain_graph=True, allow_unused=True)
    return torch.zeros_like(outputs) if found is None else found
