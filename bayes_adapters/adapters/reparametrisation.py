"""How a layer multiplies by a random weight: one class for each way, with the same members.

``times(x)`` returns ``W x`` for a random W with mean M and, entry by entry, standard deviation S. Model and guide
choose the class; the layer only calls it.

================================ ======================================= ==========================================
class                            what sees one W                         chosen by
================================ ======================================= ==========================================
:class:`Draw`                    all rows of a sample                    default
:class:`Flipout`                 an example; all share one noise matrix  the model, ``flipout=True``, in training
:class:`LocalReparametrisation`  an example, with noise of its own       the guide, which gives the ``SiteCall`` S
:class:`~.moments.Moments`       none: mean and variance are computed    a head's posterior, which gives itself
================================ ======================================= ==========================================

Under each of them an example's tokens see one function, so its expected loss is that of plain draws of W.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.nn import functional as F

from bayes_adapters.adapters.rows import Rows
from bayes_adapters.sites import Memo


@runtime_checkable
class Weight(Protocol):
    """One global draw for one layer, as the layer uses it."""

    @property
    def value(self) -> Tensor:
        """The draw, shape (*event) or (*S, 1, *event)."""
        ...

    @property
    def posterior(self) -> TorchDistributionMixin | None:
        """Of a head's own weights, the distribution that the value was drawn from; None where it was not."""
        ...

    @property
    def needs_rows(self) -> bool:
        """Whether it matters which rows of x belong to which example; not where all rows see the same."""
        ...

    def check(self, rows: Rows, layer: str, x: Float[Tensor, "rows *T k"]) -> None:
        """Refuse rows that are not those of the examples, where they have to be."""
        ...

    def times(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        """Return ``W x``."""
        ...


@dataclass(frozen=True)
class Draw:
    """``W x``, one W for each sample: a draw is one function of all tokens and examples.

    Args:
        value: W, shape (n, k), or w, shape (k,), of a diagonal part; with samples (*S, 1, n, k).
        diagonal: whether it is w, so that the product is ``w ⊙ x``.
        posterior: of a head's own weights, what the value was drawn from; None where it comes from elsewhere.
        watch: called with x and W x.

    >>> Draw(torch.tensor([[1.0, 2.0]])).times(torch.ones(3, 2)).tolist()
    [[3.0], [3.0], [3.0]]
    """

    value: Float[Tensor, "*S_event"]
    diagonal: bool = False
    posterior: TorchDistributionMixin | None = field(default=None, repr=False)
    watch: Callable[[Tensor, Tensor], None] | None = field(default=None, repr=False)

    @property
    def needs_rows(self) -> bool:
        return self.value.shape[: -1 if self.diagonal else -2].numel() > 1

    def check(self, rows: Rows, layer: str, x: Float[Tensor, "rows *T k"]) -> None:
        rows.require_examples(layer, x, signs=False)

    def times(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        product = scale(x, self.value) if self.diagonal else matmul(x, self.value)
        if self.watch is not None:
            self.watch(x, product)
        return product


@dataclass(frozen=True, eq=False)
class Flipout:
    """``M x + s ∘ (W − M)(t ∘ x)``: every example b has its own ``W_b = M + (W − M) ∘ s_b t_bᵀ``, s and t of ±1.

    Each W_b has W's distribution where that is symmetric about M. Examples share one noise matrix and are decorrelated;
    all tokens of an example, and all its windows, see one function.

    Source: Wen et al. 2018, arXiv 1803.04386.

    Args:
        value: W, shape (n, k); with samples (*S, 1, n, k).
        mean: M, shape (n, k).
        rows: S·B, samples × examples.
        noise: of the pass, which keeps the signs.
    """

    value: Float[Tensor, "*S n k"]
    mean: Float[Tensor, "n k"]
    rows: int
    noise: Memo = field(default_factory=Memo, repr=False)
    posterior: None = field(default=None, init=False, repr=False)
    needs_rows: bool = field(default=True, init=False)

    def check(self, rows: Rows, layer: str, x: Float[Tensor, "rows *T k"]) -> None:
        rows.require_examples(layer, x, signs=True)

    def times(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        inner, outer = self._of("in", x, x.shape[-1]), self._of("out", x, self.mean.shape[0])
        deviation = matmul(x.to(self.value.dtype) * inner, self.value - self.mean)
        return matmul(x, self.mean) + outer * deviation

    def _of(self, side: str, x: Tensor, width: int) -> Tensor:
        """Signs of each example for all its rows, the same where a backbone applies a layer again in a pass."""
        shape = (self.rows, width)
        signs = self.noise.once(self, side, lambda: 1.0 - 2.0 * torch.randint(0, 2, shape, device=x.device).float())
        signs = signs.repeat_interleave(x.shape[0] // self.rows, 0)  # windows, or tokens in a row
        return signs.reshape(-1, *[1] * (x.dim() - 2), width)


@dataclass(frozen=True, eq=False)
class LocalReparametrisation:
    """``M x + (S ∘ ε_b) x``, ε_b ~ N(0, I) anew for every example b: noise where x is, not one W for the batch.

    For each row x that is ``N(M x, S² x²)``, squares elementwise: the n entries of W x are independent, since the rows
    of W are. Two factors follow each other: ``z = A x`` is drawn in the rank space, then ``B z`` given z, so that all
    outputs share the noise of A, which has rank r. The tokens of an example share ε_b, as they share W under a plain
    draw, so that the example's loss has the same distribution. Examples are independent, which lowers the variance of
    a batch's gradient.

    Where the rows are no examples (a table of positions for all, a routed expert) they share one ε.

    Source: Kingma, Salimans and Welling 2015, arXiv 1506.02557, whose inputs are single vectors.

    Args:
        mean: M, shape (n, k).
        scale: S, shape (n, k), standard deviations.
        layer: the layer's path.
        rows: the layout of the pass.
        noise: of the pass, which keeps ε.
    """

    mean: Float[Tensor, "n k"]
    scale: Float[Tensor, "n k"]
    layer: str
    rows: Rows
    noise: Memo = field(default_factory=Memo, repr=False)
    posterior: None = field(default=None, init=False, repr=False)
    needs_rows: bool = field(default=True, init=False)

    @property
    def value(self) -> Tensor:
        return self.mean

    def check(self, rows: Rows, layer: str, x: Float[Tensor, "rows *T k"]) -> None:
        """Take any rows: they share one noise where they are no examples."""

    def times(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        x = x.to(self.mean.dtype)
        groups = self.rows.count if self.rows.are_examples(self.layer, x) else 1
        like = self.mean.expand(groups, *self.mean.shape)
        noise = self.noise.once(self, str(groups), lambda: torch.randn_like(like))  # the layer may be applied again
        deviation = torch.matmul(x.reshape(groups, -1, x.shape[-1]), (self.scale * noise).mT)
        return F.linear(x, self.mean) + deviation.reshape(*x.shape[:-1], self.mean.shape[0])


def matmul(x: Float[Tensor, "rows *T k"], weight: Float[Tensor, "*S n k"]) -> Float[Tensor, "rows *T n"]:
    """Return ``x Wᵀ``; with samples of W, the rows of x are S·B in the order [S, B]."""
    samples = weight.reshape(-1, *weight.shape[-2:])
    x = x.to(weight.dtype)
    if samples.shape[0] == 1:
        return F.linear(x, samples[0])
    flat = x.reshape(samples.shape[0], -1, x.shape[-1])
    return torch.matmul(flat, samples.mT).reshape(*x.shape[:-1], weight.shape[-2])


def scale(x: Float[Tensor, "rows *T k"], weight: Float[Tensor, "*S k"]) -> Float[Tensor, "rows *T k"]:
    """Return ``w ⊙ x``; with samples of w, the rows of x are S·B in the order [S, B]."""
    samples = weight.reshape(-1, 1, weight.shape[-1])
    return (x.reshape(samples.shape[0], -1, x.shape[-1]) * samples).reshape(x.shape)
