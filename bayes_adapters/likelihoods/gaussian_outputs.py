"""Outputs of a head that are told by their moments rather than drawn."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


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


def point_of(outputs: Tensor | GaussianOutputs) -> Tensor:
    """Return the outputs themselves, or the mean of those that are told by their moments."""
    return outputs.mean if isinstance(outputs, GaussianOutputs) else outputs
