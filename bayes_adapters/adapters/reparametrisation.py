"""How a layer multiplies by a random weight: one class for each way, with the same two members.

``times(x)`` returns ``W x`` for a random W with mean M and, entry by entry, standard deviation S; ``needs_rows`` says
whether it must know which rows of x belong to which example. Model and guide choose the class; the layer only calls it.

================================ ======================================= ==========================================
class                            what all rows of x see                  chosen by
================================ ======================================= ==========================================
:class:`Draw`                    one W for each sample                   default
:class:`Flipout`                 one W for each example                  the model, ``flipout=True``, in training
:class:`LocalReparametrisation`  noise on W x, independent for each row  the guide, which gives the ``SiteCall`` S
================================ ======================================= ==========================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@runtime_checkable
class Weight(Protocol):
    """One global draw for one layer, as the layer uses it."""

    @property
    def value(self) -> Tensor:
        """The draw, shape (*event) or (*S, 1, *event)."""
        ...

    @property
    def needs_rows(self) -> bool:
        """Whether rows of x must be those of the examples; not where all rows see the same."""
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

    >>> Draw(torch.tensor([[1.0, 2.0]])).times(torch.ones(3, 2)).tolist()
    [[3.0], [3.0], [3.0]]
    """

    value: Float[Tensor, "*S_event"]
    diagonal: bool = False

    @property
    def needs_rows(self) -> bool:
        return self.value.shape[: -1 if self.diagonal else -2].numel() > 1

    def times(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        return scale(x, self.value) if self.diagonal else matmul(x, self.value)


@dataclass(frozen=True)
class Flipout:
    """``M x + s ∘ (W − M)(t ∘ x)``: every example b has its own ``W_b = M + (W − M) ∘ s_b t_bᵀ``, s and t of ±1.

    Each W_b has W's distribution where that is symmetric about M. Examples share one noise matrix and are decorrelated;
    all tokens of an example, and all its windows, see one function.

    Source: Wen et al. 2018, arXiv 1803.04386.

    Args:
        value: W, shape (n, k); with samples (*S, 1, n, k).
        mean: M, shape (n, k).
        rows: S·B, samples × examples.
    """

    value: Float[Tensor, "*S n k"]
    mean: Float[Tensor, "n k"]
    rows: int
    _signs: dict[str, Tensor] = field(default_factory=dict, repr=False)
    needs_rows: bool = field(default=True, init=False)

    def times(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        inner, outer = self._of("in", x, x.shape[-1]), self._of("out", x, self.mean.shape[0])
        deviation = matmul(x.to(self.value.dtype) * inner, self.value - self.mean)
        return matmul(x, self.mean) + outer * deviation

    def _of(self, side: str, x: Tensor, width: int) -> Tensor:
        """Signs of each example for all its rows, the same where a backbone applies a layer again in a pass."""
        if side not in self._signs:
            self._signs[side] = 1.0 - 2.0 * torch.randint(0, 2, (self.rows, width), device=x.device).float()
        signs = self._signs[side].repeat_interleave(x.shape[0] // self.rows, 0)  # windows, or tokens in a row
        return signs.reshape(-1, *[1] * (x.dim() - 2), width)


@dataclass(frozen=True)
class LocalReparametrisation:
    """``M x + sqrt(S² x²) ∘ ε``, ε ~ N(0, I) for every row and token: exactly W x's distribution there.

    The rows of a Gaussian W are independent, so that the n entries of ``W x`` are, and their variances are ``S² x²``
    (squares are elementwise). Two factors follow each other: ``z = A x`` is drawn in the rank space, then ``B z`` given
    z, so that all outputs share the noise of A, as they do under one draw of (A, B). Over the tokens of an example the
    noise is independent, which one draw's is not.

    Source: Kingma, Salimans and Welling 2015, arXiv 1506.02557.

    Args:
        mean: M, shape (n, k).
        scale: S, shape (n, k), standard deviations.
    """

    mean: Float[Tensor, "n k"]
    scale: Float[Tensor, "n k"]
    needs_rows: bool = field(default=False, init=False)

    @property
    def value(self) -> Tensor:
        return self.mean

    def times(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        x = x.to(self.mean.dtype)
        mean, variance = F.linear(x, self.mean), F.linear(x.square(), self.scale.square())
        # The square root has no slope at 0, where an input is 0 or a scale underflows.
        return mean + torch.randn_like(mean) * variance.clamp_min(1e-20).sqrt()


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
