"""The curvature of −log p(data | w) as a Kronecker product for each weight matrix: KFAC of the Gauss-Newton matrix.

A matrix W, n × k, takes the vector x_t of each token t of an example to ``y_t = W x_t``. With g_tc the gradient with
respect to y_t of the c-th column of a root of Λ (see :mod:`bayes_adapters.surgery._curvature`), the exact block is::

    H = Σ_examples Σ_c vec(Σ_t g_tc x_tᵀ) vec(Σ_t g_tc x_tᵀ)ᵀ

Two approximations ``H ≈ G ⊗ A``, entries in the order of rows, sums over N examples of R tokens each::

    reduce    A = (1/N) Σ x̄ x̄ᵀ,  x̄ = (1/R) Σ_t x_t         G = Σ Σ_c ḡ_c ḡ_cᵀ,  ḡ_c = Σ_t g_tc
    expand    A = (1/Σ R) Σ Σ_t x_t x_tᵀ                    G = Σ Σ_c Σ_t g_tc g_tcᵀ

Both are exact where there is one example of one token, or where the x_t of all are the same; reduce also for one
example in whose outputs all tokens have the same part, as under a mean of linear layers; expand for each of the tokens
of one x with an output of its own. A token on which no output depends (g_tc = 0 for every c: padding, or what a head of
one token does not see) adds nothing to H, and is counted neither in R nor in A.

Sources: Martens and Grosse 2015, arXiv 1503.05671; tokens: Eschenhagen et al. 2023, arXiv 2311.00636.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.devices import float64
from bayes_adapters.inference.linearised import Tangent
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.watching import Watching
from bayes_adapters.sites import Site
from bayes_adapters.surgery._curvature import largest
from bayes_adapters.surgery._laplace_checks import require_watched


class Tokens(StrEnum):
    """How a Kronecker factor sums over the tokens of an example; see :mod:`bayes_adapters.surgery._kronecker`."""

    REDUCE = "reduce"
    """Inputs are averaged and gradients summed over tokens first: for one target per example."""
    EXPAND = "expand"
    """Tokens count as if they were examples: for one target per token."""


class Kronecker:
    """Two factors for the matrix of every site and layer; of a vector the one factor is dense, and exact.

    Args:
        model: whose sites they are.
        tokens: how to sum over them.
        rank: the most directions that are kept of either factor.
        unit: the prior's standard deviation, one for each site and layer.
    """

    def __init__(self, model: AdapterModel, tokens: Tokens, rank: int, unit: Float[Tensor, " b"]) -> None:
        self.tokens, self.rank, self.unit = tokens, rank, unit
        self.places: list[tuple[Site, int, slice]] = []
        self.outer: list[Tensor] = []
        self.inner: list[Tensor] = []
        self.counts: list[int] = []
        start = 0
        for site in model.sites:
            n, k = site.event[0], torch.Size(site.event[1:]).numel()
            for layer in range(len(site.layers)):
                self.places.append((site, layer, slice(start, start + n * k)))
                self.outer.append(torch.zeros(n, n, dtype=torch.float64))
                self.inner.append(torch.zeros(k, k, dtype=torch.float64))
                self.counts.append(0)
                start += n * k
        self._watching = Watching()

    def watching(self) -> AbstractContextManager[Any]:
        """A context in which an example's pass is seen."""
        self._watching = Watching()
        return self._watching

    def pulled(
        self, tangent: Tangent, entries: Tensor, leaves: list[Tensor], weights: Sequence[Tensor]
    ) -> list[Float[Tensor, " D"]]:
        """Return the gradients of ``Tangent.pulled``; those after the first, of the columns, are added."""
        runs = self._watching.products
        require_watched([site for site, _, _ in self.places], {name for name, _ in runs})
        products = {key: [product.y for product in found] for key, found in runs.items()}
        flat = [y for ys in products.values() for y in ys]
        rows, columns = [], []
        for one in weights:
            found = torch.autograd.grad(
                entries, [*leaves, *flat], one.to(entries), retain_graph=True, allow_unused=True
            )
            rows.append(tangent.joined(found[: len(leaves)]))
            columns.append(
                [torch.zeros_like(y) if g is None else g for g, y in zip(found[len(leaves) :], flat, strict=True)]
            )
        at = 0
        slopes: dict[tuple[str, int], Tensor] = {}
        for key, ys in products.items():
            parts = [torch.cat([column[at + i].flatten(0, -2) for i in range(len(ys))]) for column in columns[1:]]
            at += len(ys)
            if parts:
                slopes[key] = float64(torch.stack(parts)).cpu()  # (c, tokens, n)
        for number, (site, layer, place) in enumerate(self.places):
            key = site.name, layer
            if len(site.event) != 2:
                for row in rows[1:]:
                    self._add(number, float64(row[place]).cpu()[None, None], torch.ones(1, 1, dtype=torch.float64))
            elif key in slopes:
                x = torch.cat([float64(x.detach()).cpu().flatten(0, -2) for x, *_ in runs[key]])
                self._add(number, slopes[key], x)
        return rows

    def _add(self, number: int, slopes: Float[Tensor, "c t n"], inputs: Float[Tensor, "t k"]) -> None:
        """Add one example, whose tokens without any slope are left out."""
        used = (slopes != 0).any(-1).any(0)
        if not bool(used.any()):
            return
        slopes, inputs = slopes[:, used], inputs[used]
        if self.tokens is Tokens.REDUCE:
            slopes, inputs = slopes.sum(1, keepdim=True), inputs.mean(0, keepdim=True)
        slopes = slopes.flatten(0, 1)
        self.outer[number] += slopes.mT @ slopes
        self.inner[number] += inputs.mT @ inputs
        self.counts[number] += len(inputs)

    def add(self, columns: Float[Tensor, "D c"]) -> None:
        """Nothing: :meth:`pulled` has added them."""

    def factors(self) -> list[tuple[Tensor, Tensor]]:
        """Return G, in the unit of the prior, and A of every matrix."""
        return [
            (unit.square() * outer, inner / max(count, 1))
            for unit, outer, inner, count in zip(self.unit, self.outer, self.inner, self.counts, strict=True)
        ]

    def sides(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Return the directions and curvatures P, g, Q, a of every matrix, at most ``rank`` of each."""
        return [(*self._largest(outer), *self._largest(inner)) for outer, inner in self.factors()]

    def _largest(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """The directions of a factor and the curvature along each; pruning may have left it without entries."""
        return largest(factor, self.rank) if len(factor) else (factor, factor.diagonal())

    @property
    def trace(self) -> float:
        """The trace of all products."""
        return sum(float(outer.trace() * inner.trace()) for outer, inner in self.factors())

    @property
    def kept(self) -> float:
        """The share of the trace that the directions kept hold."""
        held = sum(float(g.sum() * a.sum()) for _, g, _, a in self.sides())
        return min(held / self.trace, 1.0) if self.trace else 1.0
