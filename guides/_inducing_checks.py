"""What a posterior of inducing weights asks of its options and of the prior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, whole_number
from bayes_adapters.sites import Site

USUAL = 0.2
"""The standard deviation that stands for that of a prior without one: that of the library's usual prior."""


def require_sides(inducing: Sequence[int]) -> tuple[int, int]:
    """Return (M_r, M_c); raise :class:`ConfigError` unless ``inducing`` is a pair of sizes."""
    if not isinstance(inducing, Sequence) or len(inducing) != 2:
        raise ConfigError(f"inducing is a pair, the rows and columns of U; got {inducing!r}. Give, say, (4, 8).")
    for name, size in zip(("rows", "columns"), inducing, strict=True):
        whole_number(f"inducing, {name} of U,", size)
    return (inducing[0], inducing[1])


def centre_and_deviation(prior: Any, site: Site, needed: bool) -> tuple[Tensor, Tensor]:
    """Return the prior's mean and standard deviation, shape ``site.shape``, or 0 and 0.2 where they are not finite.

    Raises:
        ConfigError: they are not finite and are ``needed``.
    """
    try:
        mean, deviation = prior.mean.expand(site.shape), prior.stddev.expand(site.shape)
        known = bool((mean.isfinite() & deviation.isfinite()).all())
    except NotImplementedError:
        known = False
    if known:
        return mean, deviation
    if needed:
        raise ConfigError(
            f"keep_conditional=True lets the weights of {site.name!r} follow U by the conditional of a Gaussian of the "
            f"prior's mean and standard deviation, and its prior {type(base_distribution(prior)).__name__} has none "
            "that are finite. Take Normal, Laplace or a StudentT of more than 2 degrees of freedom, or leave it out."
        )
    return torch.zeros(site.shape), torch.full(site.shape, USUAL)
