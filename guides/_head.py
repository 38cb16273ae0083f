"""What amortised guides share: the network from a conditioning vector to a Gaussian over the core."""

from __future__ import annotations

from enum import Enum

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.errors import ConfigError


class ScaleTransform(str, Enum):
    """How a pre-activation g becomes a standard deviation σ > 0."""

    SIGMOID_SQUARED = "sigmoid_squared"
    """σ = sigmoid(g)², in (0, 1) and ¼ at g = 0: C-LoRA's."""
    SOFTPLUS = "softplus"
    """σ = softplus(g) + 1e-6, unbounded."""

    def __call__(self, g: Tensor) -> Tensor:
        """Apply the transform elementwise; sigmoid² is floored at 1e-6, where its log is still finite."""
        if self is ScaleTransform.SIGMOID_SQUARED:
            return torch.sigmoid(g).square().clamp_min(1e-6)
        return F.softplus(g) + 1e-6


class PosteriorHead(nn.Module):
    """``(μ, g) = W₂ ReLU(W₁ u + b₁) + b₂``, ``q(E | u) = N(μ, f(g)²)`` elementwise.

    Args:
        in_features: width of u.
        rank: r; the output has 2 r² numbers, means first.
        width: hidden units.
        scale: f.
    """

    def __init__(self, in_features: int, rank: int, width: int, scale: ScaleTransform) -> None:
        super().__init__()
        if width < 1:
            raise ConfigError(f"The hidden width must be at least 1; got {width}.")
        self.rank, self.scale = rank, scale
        self.net = nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, 2 * rank * rank))

    def forward(self, u: Float[Tensor, "*shape k"]) -> TorchDistributionMixin:
        """Return a distribution of batch shape ``*shape`` and event shape (r, r)."""
        loc, g = self.net(u).unflatten(-1, (2, self.rank, self.rank)).unbind(-3)
        return dist.Normal(loc, self.scale(g), validate_args=False).to_event(2)


def fp32(device: torch.device) -> torch.autocast:
    """Switch autocast off: variational parameters and log-densities stay float32 under a bf16 backbone."""
    return torch.autocast(device.type, enabled=False)
