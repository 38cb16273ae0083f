"""A random matrix of which a layer is told the moments, so that it needs no draw."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bayes_adapters.adapters.rows import Rows
from bayes_adapters.distributions import base_distribution


@dataclass(frozen=True)
class Moments:
    """``E[W x] = M x`` and ``Var[(W x)_k] = xᵀ S_k x`` for a Gaussian W with independent rows w_k ~ N(m_k, S_k).

    One more way to multiply by a random weight, beside those of
    :mod:`bayes_adapters.adapters.reparametrisation`. The n entries of W x are independent Gaussians, so that mean and
    variance say all about them for one x.

    Args:
        posterior: over (L, n, k), L layers: independent entries (``Normal``), or rows of a ``MultivariateNormal`` or a
            ``LowRankMultivariateNormal``. A head that computes with other moments of it may give any distribution.
        layer: which of the L.

    >>> import pyro.distributions as dist
    >>> weight = Moments(dist.Normal(torch.zeros(1, 2, 3), torch.tensor([[[1.0], [2.0]]])).to_event(2), 0)
    >>> weight.times(torch.ones(1, 3)), weight.variance(torch.ones(1, 3))
    (tensor([[0., 0.]]), tensor([[ 3., 12.]]))
    """

    posterior: Any
    layer: int
    needs_rows: bool = field(default=False, init=False)

    @property
    def value(self) -> Float[Tensor, "*event"]:
        """M, the mean."""
        mean: Tensor = base_distribution(self.posterior).mean
        return mean[self.layer]

    def check(self, rows: Rows, layer: str, x: Float[Tensor, "rows *T k"]) -> None:
        """Take any rows: they all see the same moments."""

    def times(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        """Return ``M x``."""
        return F.linear(x.to(self.value.dtype), self.value)

    def variance(self, x: Float[Tensor, "rows *T k"]) -> Float[Tensor, "rows *T n"]:
        """Return ``xᵀ S_k x`` for every row k of W."""
        q, x = base_distribution(self.posterior), x.to(self.value.dtype)
        if isinstance(q, torch.distributions.MultivariateNormal):
            return torch.einsum("...k,nkj->...nj", x, q.scale_tril[self.layer]).square().sum(-1)
        if isinstance(q, torch.distributions.LowRankMultivariateNormal):
            low = torch.einsum("...k,nkj->...nj", x, q.cov_factor[self.layer]).square().sum(-1)
            return low + F.linear(x.square(), q.cov_diag[self.layer])
        return F.linear(x.square(), q.scale[self.layer].square())
