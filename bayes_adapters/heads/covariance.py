"""Covariances of the rows of a Gaussian weight: which entries of a row may correlate, and at what cost."""

from __future__ import annotations

import math
from enum import StrEnum

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.distributions._checks import positive_definite


class Covariance(StrEnum):
    """S_k, shape (D, D), of each of K rows ``w_k ~ N(m_k, S_k)``; rows are independent of each other."""

    DIAGONAL = "diagonal"
    """``diag(σ²)``: D numbers."""
    LOW_RANK = "low_rank"
    """``F Fᵀ + diag(σ²)``, F of shape (D, r): D (r + 1) numbers."""
    DENSE = "dense"
    """``L Lᵀ``, L lower triangular with a positive diagonal: kept as D² numbers, and the KL takes D³ operations."""

    def isotropic(self, rows: int, width: int, scale: float) -> TorchDistributionMixin:
        """Return ``w_k ~ N(0, scale² I)`` in the form to which torch knows the KL of a Gaussian of this covariance."""
        zero = torch.zeros(rows, width)
        if self is Covariance.DIAGONAL:
            return dist.Normal(zero, torch.full_like(zero, scale))
        if self is Covariance.LOW_RANK:
            return dist.LowRankMultivariateNormal(zero, zero[..., None], torch.full_like(zero, scale**2))
        return dist.MultivariateNormal(zero, scale_tril=scale * torch.eye(width))


class GaussianRows(nn.Module):
    """``q(W) = Π_k N(m_k, S_k)`` with free mean and covariance.

    Args:
        start: m at the start, shape (K, D).
        scale: the standard deviation of every entry at the start; F starts at a tenth of it, at random.
        covariance: the form of S_k.
        rank: r of a covariance of low rank.

    >>> q = GaussianRows(torch.zeros(3, 5), 0.1, Covariance.LOW_RANK, rank=2)
    >>> [(name, tuple(value.shape)) for name, value in q.named_parameters()]
    [('loc', (1, 3, 5)), ('log_scale', (1, 3, 5)), ('factor', (1, 3, 5, 2))]
    >>> q().batch_shape, q().event_shape
    (torch.Size([1]), torch.Size([3, 5]))
    """

    def __init__(self, start: Float[Tensor, "K D"], scale: float, covariance: Covariance, rank: int) -> None:
        super().__init__()
        self.covariance = covariance
        loc = start.detach().clone()[None]
        self.loc = nn.Parameter(loc)
        self.log_scale = nn.Parameter(torch.full_like(loc, math.log(scale)))
        if covariance is Covariance.LOW_RANK:
            self.factor = nn.Parameter(torch.randn(*loc.shape, rank) * (0.1 * scale / math.sqrt(rank)))
        if covariance is Covariance.DENSE:
            self.lower = nn.Parameter(torch.zeros(*loc.shape, loc.shape[-1]))

    def forward(self) -> TorchDistributionMixin:
        """Return q, batch shape (1,), event shape (K, D)."""
        scale = self.log_scale.exp()
        if self.covariance is Covariance.DIAGONAL:
            return dist.Normal(self.loc, scale, validate_args=False).to_event(2)
        if self.covariance is Covariance.LOW_RANK:
            with positive_definite(self, scale):
                q = dist.LowRankMultivariateNormal(self.loc, self.factor, scale.square(), validate_args=False)
        else:
            lower = self.lower.tril(-1) + torch.diag_embed(scale)
            q = dist.MultivariateNormal(self.loc, scale_tril=lower, validate_args=False)
        return q.to_event(1)
