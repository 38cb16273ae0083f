"""The covariance of a Gaussian over many weights, as it acts on rows: no D × D matrix is made."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal

from bayes_adapters.distributions.reading import base_distribution
from bayes_adapters.errors import ConfigError


def is_gaussian(fn: Any) -> bool:
    """Whether :func:`projected` knows the covariance of ``fn``: a point counts as a Gaussian without spread."""
    base = base_distribution(fn)
    return hasattr(base, "projected") or isinstance(
        base, Delta | Normal | MultivariateNormal | LowRankMultivariateNormal
    )


def projected(fn: Any, rows: Float[Tensor, "*S D"]) -> Float[Tensor, "*S P"]:
    """Return ``Rᵀ v`` for each row v, where w = m + R ε: ``Cov(v·w, v'·w)`` is the product of two of them.

    Args:
        fn: over D numbers, whatever of its shape is batch and what is event, in their order; a batch shape of Gaussians
            is independent of each other. A family of your own has a method ``projected(rows)``.
        rows: v.

    Raises:
        ConfigError: ``fn`` is no Gaussian that is known here.

    >>> q = MultivariateNormal(torch.zeros(2, 2), scale_tril=torch.tensor([[[1.0, 0.0], [3.0, 4.0]]] * 2))
    >>> projected(q, torch.tensor([[0.0, 1.0, 0.0, 0.0]])).square().sum(-1)  # 3² + 4²
    tensor([25.])
    """
    base = base_distribution(fn)
    if hasattr(base, "projected"):
        own: Tensor = base.projected(rows)
        return own
    if isinstance(base, Delta):
        return rows[..., :0]
    if isinstance(base, Normal):
        return rows * base.scale.reshape(-1)
    if isinstance(base, LowRankMultivariateNormal):
        factor = base.cov_factor.reshape(-1, *base.cov_factor.shape[-2:])
        low = torch.einsum("...bn,bnr->...br", rows.unflatten(-1, factor.shape[:2]), factor)
        return torch.cat([low.flatten(-2), rows * base.cov_diag.sqrt().reshape(-1)], -1)
    if isinstance(base, MultivariateNormal):
        tril = base.scale_tril.reshape(-1, *base.scale_tril.shape[-2:])
        return torch.einsum("...bn,bnm->...bm", rows.unflatten(-1, tril.shape[:2]), tril).flatten(-2)
    raise ConfigError(
        f"The covariance of {type(base).__name__} is not known in closed form. Take draws, or a Gaussian family."
    )
