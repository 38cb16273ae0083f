"""A distribution beside which a loss stands: what generalised Bayesian inference scores targets by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


class WithPotential(TorchDistribution):
    """``log_prob(y) = w log p(y) − ψ(y)``: a tempered density and a Gibbs potential, which is no density.

    Summed over y it is not 1, and nothing makes it so: it belongs into the ELBO of ``prior × Π exp(w log p − ψ)``, the
    generalised posterior of a loss, and into no predictive density, for which there is ``base_dist``.

    Args:
        base_dist: p.
        potential: y → ψ(y) ≥ 0, shape = batch shape (or one that broadcasts to it), nats; None for 0.
        weight: w > 0.

    Source: Bissiri, Holmes and Walker 2016, arXiv 1306.6430.

    >>> import pyro.distributions as dist
    >>> fn = WithPotential(dist.Normal(torch.zeros(2), 1.0), lambda y: y.abs(), weight=0.5)
    >>> fn.log_prob(torch.tensor([0.0, 2.0])) - 0.5 * fn.base_dist.log_prob(torch.tensor([0.0, 2.0]))
    tensor([ 0., -2.])
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        base_dist: Any,
        potential: Callable[[Tensor], Tensor] | None = None,
        weight: float = 1.0,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.base_dist, self.potential, self.weight = base_dist, potential, weight
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        """That of p."""
        return self.base_dist.support

    @property
    def mean(self) -> Tensor:
        """That of p."""
        return self.base_dist.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> WithPotential:
        """Return the same with another batch shape."""
        base = self.base_dist.expand(torch.Size(batch_shape))
        return WithPotential(base, self.potential, self.weight, validate_args=False)

    def log_prob(self, value: Tensor) -> Float[Tensor, "..."]:
        """Return ``w log p(value) − ψ(value)``, shape = batch shape."""
        scores: Tensor = self.weight * self.base_dist.log_prob(value)
        return scores if self.potential is None else scores - self.potential(value)

    def count(self, value: Tensor) -> Float[Tensor, "..."]:
        """Return how many labels ``w log p`` is of: w times those that p scores, shape = batch shape."""
        return self.weight * self.base_dist.count(value)

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Draw from p."""
        return self.base_dist.sample(torch.Size(sample_shape or ()))


def density_of(fn: Any) -> Any:
    """Return p itself, without weight and potential."""
    return fn.base_dist if isinstance(fn, WithPotential) else fn
