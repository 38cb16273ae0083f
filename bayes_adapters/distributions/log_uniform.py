"""``LogUniform``: the scale-free prior of variational dropout."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Normal, constraints
from torch.distributions.kl import register_kl
from torch.nn import functional as F

from bayes_adapters.errors import ConfigError

_K1, _K2, _K3 = 0.63576, 1.87320, 1.48695


class LogUniform(TorchDistribution):
    """The improper prior ``p(w) ∝ 1/|w|``: uniform in log |w|, the same at every scale.

    Density, unnormalised: ``log p(w) = −½ log(w² + eps)``. It has no draws. The KL from a Gaussian N(μ, σ²) depends on
    ``α = σ² / (μ² + eps)`` only and is known up to a constant, chosen so that it tends to 0 as α → ∞::

        KL ≈ k₁ − k₁ sigmoid(k₂ + k₃ log α) + ½ log(1 + 1/α),   k = (0.63576, 1.87320, 1.48695)

    Source: Molchanov, Ashukha and Vetrov 2017, arXiv 1701.05369, equation 14.

    Args:
        eps: positive, squared units of w: keeps the density finite at 0; shape = batch shape.

    >>> LogUniform().log_prob(torch.tensor([0.1, 10.0]))
    tensor([ 2.3026, -2.3026])
    """

    arg_constraints = {"eps": constraints.positive}
    support = constraints.real

    def __init__(self, eps: Tensor | float = 1e-8, *, validate_args: bool | None = None) -> None:
        self.eps = torch.as_tensor(eps)
        super().__init__(self.eps.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """0, the centre of symmetry; the integral itself diverges."""
        return torch.zeros_like(self.eps)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogUniform:
        """Return the same prior with another batch shape."""
        return LogUniform(self.eps.expand(torch.Size(batch_shape)), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``−½ log(w² + eps)``, unnormalised."""
        return -0.5 * torch.log(value.square() + self.eps)

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Raise: an improper distribution has no draws.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(
            "The log-uniform prior p(w) ∝ 1/|w| is improper and has no draws, so the model cannot run by itself, and "
            "guides whose locations start at a draw of the prior (cores, diagonals) cannot start. It is for a random A "
            "and B: StochasticFactors under the guide RankWise or MeanField."
        )

    rsample = sample


@register_kl(Normal, LogUniform)  # type: ignore[untyped-decorator]
def _kl_normal_log_uniform(q: Normal, p: LogUniform) -> Tensor:
    log_alpha = 2.0 * q.scale.log() - torch.log(q.loc.square() + p.eps)
    return _K1 - _K1 * torch.sigmoid(_K2 + _K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)
