"""What any distribution tells: the one inside its wrappers, its mean, its device, draws that follow from uniforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import ConfigError


def base_distribution(fn: Any) -> Any:
    """Return the elementwise distribution inside ``Independent``, mask and expansion wrappers."""
    while hasattr(fn, "base_dist") and type(fn).__name__ in (
        "Independent",
        "MaskedDistribution",
        "ExpandedDistribution",
    ):
        fn = fn.base_dist
    return fn


def mean_of(fn: Any, name: str) -> Tensor:
    """Return the mean of the distribution of the site ``name``; raise :class:`ConfigError` if it is not known."""
    try:
        mean: Tensor = fn.mean
    except NotImplementedError:
        raise ConfigError(
            f"The mean of {type(base_distribution(fn)).__name__}, the distribution of {name!r}, is not known, and "
            "mean_only, flipout and to_lora need it. Do without them, or take another family, such as Normal."
        ) from None
    return mean


def device_of(fn: Any) -> torch.device:
    """Return the device that the parameters of the distribution ``fn`` are on."""
    base = base_distribution(fn)
    for value in vars(base).values():
        if isinstance(value, Tensor):
            return value.device
        if isinstance(value, torch.distributions.Distribution):  # LogNormal, Beta and transformed ones hold another
            return device_of(value)
    mean: Tensor = fn.mean
    return mean.device


def from_uniforms(fn: Any, uniforms: Callable[[int], Float[Tensor, "S 1 n"]]) -> Tensor:
    """Return draws of ``fn`` that are a function of uniforms, for entries that may depend on each other.

    A Gaussian is ``loc + L Φ⁻¹(u)``, of low rank ``loc + W Φ⁻¹(u) + √d Φ⁻¹(u')``; a transformed distribution transforms
    draws of its base; a family with a method ``from_uniforms`` says it itself; any other needs an inverse CDF, entry by
    entry.

    Args:
        fn: batch shape (S, 1); of a Gaussian with entries that depend on each other these are along the last axis.
        uniforms: n → uniforms in (0, 1), shape (S, 1, n).

    Returns:
        Shape ``fn.shape()``.

    Raises:
        ConfigError: the family is none of these.
    """
    base = base_distribution(fn)
    if hasattr(base, "from_uniforms"):
        own: Tensor = base.from_uniforms(fn.shape(), uniforms)
        return own
    if isinstance(base, torch.distributions.LowRankMultivariateNormal):
        factor, deviation = base.cov_factor, base.cov_diag.sqrt()
        lead, count = fn.shape()[:-1], factor.shape[-1] + deviation.shape[-1]
        noise = torch.special.ndtri(uniforms(lead[2:].numel() * count)).reshape(*lead, count)
        low, rest = noise[..., : factor.shape[-1]], noise[..., factor.shape[-1] :]
        return base.loc + (factor @ low[..., None])[..., 0] + deviation * rest
    if isinstance(base, torch.distributions.MultivariateNormal):
        noise = torch.special.ndtri(uniforms(fn.shape()[2:].numel())).reshape(fn.shape())
        return base.loc + (base.scale_tril @ noise[..., None])[..., 0]
    if isinstance(base, torch.distributions.TransformedDistribution):
        value = from_uniforms(base.base_dist, uniforms)
        for transform in base.transforms:
            value = transform(value)
        return value.reshape(fn.shape())
    return inverse_cdf(fn, uniforms(fn.shape()[2:].numel()).reshape(fn.shape()))


def inverse_cdf(fn: Any, uniform: Tensor) -> Tensor:
    """Return ``F⁻¹(u)`` for every entry of ``fn``: draws that are a function of the uniforms ``u`` in (0, 1).

    Raises:
        ConfigError: the family has no inverse CDF.
    """
    base = base_distribution(fn)
    if type(base).__name__ == "Delta":
        return fn.mean
    if isinstance(base, torch.distributions.Bernoulli):
        return (uniform < base.probs).to(uniform.dtype)
    try:
        return base.icdf(uniform)
    except NotImplementedError:
        raise ConfigError(
            f"{type(base).__name__} has no inverse CDF, which repeatable draws need. Call predict(..., seed=None) "
            "to draw with torch's generator instead; results then depend on the batch size."
        ) from None
