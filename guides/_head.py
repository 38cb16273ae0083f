"""What amortised guides share: the network from a conditioning vector to a Gaussian over the core."""

from __future__ import annotations

from enum import StrEnum

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.errors import whole_number


class ScaleTransform(StrEnum):
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
    """``(m, g) = W₂ ReLU(W₁ u + b₁) + b₂``, ``q(E | u) = N(E_p[E] + m, f(g)²)`` elementwise.

    The mean is an offset from the prior's: under N(I, β²) a fresh guide starts near plain LoRA, under N(0, β²) near no
    adaptation (and then it is C-LoRA's network exactly). A prior without a finite mean is centred at 0. Without f the
    network ends in m alone, and q is the point ``δ(E − E_p[E] − m)``.

    Args:
        in_features: width of u.
        rank: r; the output has 2 r² numbers, means first, or the r² means where there is no f.
        width: hidden units.
        scale: f, or None.
    """

    def __init__(self, in_features: int, rank: int, width: int, scale: ScaleTransform | None) -> None:
        super().__init__()
        whole_number("width", width)
        self.rank, self.scale = rank, scale
        outputs = (1 if scale is None else 2) * rank * rank
        self.net = nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, u: Float[Tensor, "*shape k"], prior: TorchDistributionMixin) -> TorchDistributionMixin:
        """Return a distribution of batch shape ``*shape`` and event shape (r, r); ``prior`` is over one core."""
        offset, *g = self.net(u).unflatten(-1, (-1, self.rank, self.rank)).unbind(-3)
        loc = torch.nan_to_num(prior.mean, nan=0.0, posinf=0.0, neginf=0.0) + offset
        if self.scale is None:
            return dist.Delta(loc, event_dim=2)
        return dist.Normal(loc, self.scale(g[0]), validate_args=False).to_event(2)
