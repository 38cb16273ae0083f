"""Outputs of a head that are told by their moments rather than drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bayes_adapters.distributions.token_logits import TokenLogits


@dataclass(frozen=True)
class GaussianOutputs:
    """``f_k ~ N(m_k, v_k)``, independent for the K outputs of an example, given its features.

    Args:
        mean: m, shape (rows, K), or (*S, B, K) where a likelihood sees it.
        variance: v ≥ 0, the same shape.
        noise: for likelihoods of numbers, the variance of the targets' noise in the unit of f, the same shape; None
            where the likelihood has its own.
    """

    mean: Float[Tensor, "*rows K"]
    variance: Float[Tensor, "*rows K"]
    noise: Float[Tensor, "*rows K"] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the mean."""
        return tuple(self.mean.shape)

    def reshape(self, *shape: int) -> GaussianOutputs:
        """Return the same outputs in another shape."""
        noise = None if self.noise is None else self.noise.reshape(shape)
        return GaussianOutputs(self.mean.reshape(shape), self.variance.reshape(shape), noise)


@dataclass(frozen=True, kw_only=True)
class ConjugateOutputs(GaussianOutputs):
    """``f | Σ ~ N(m, h Σ)`` with ``Σ ~ InverseWishart(Ψ, ν)``, the covariance of the targets' noise, too.

    Args:
        mean: m, shape (rows, K), or (*S, B, K).
        variance: h E Σ_kk, the same shape.
        leverage: h ≥ 0, shape (rows), or (*S, B).
        spread: the Cholesky factor of Ψ, shape (K, K), in the unit of f.
        df: ν, shape (); None where Σ is known, and is Ψ.
    """

    leverage: Float[Tensor, "*rows"]
    spread: Float[Tensor, "K K"]
    df: Float[Tensor, ""] | None

    def reshape(self, *shape: int) -> ConjugateOutputs:
        """Return the same outputs in another shape."""
        mean, variance = self.mean.reshape(shape), self.variance.reshape(shape)
        leverage = self.leverage.reshape(shape[:-1])
        return ConjugateOutputs(mean=mean, variance=variance, leverage=leverage, spread=self.spread, df=self.df)


def numbers_of(outputs: Tensor | GaussianOutputs | TokenLogits) -> Tensor:
    """Return the outputs, or what was computed of those that are told in another way: means, or hidden states."""
    return outputs.hidden if isinstance(outputs, TokenLogits) else point_of(outputs)


def point_of(outputs: Any) -> Any:
    """Return the outputs themselves, or the mean of those that are told by their moments."""
    return outputs.mean if isinstance(outputs, GaussianOutputs) else outputs
