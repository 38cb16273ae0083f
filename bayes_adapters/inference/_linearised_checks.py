"""What predictives of linearised outputs refuse: a posterior that is no Gaussian, a likelihood without a formula."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.distributions import Delta

from bayes_adapters.distributions import base_distribution, is_gaussian
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood


def require_gaussian(fns: Mapping[str, Any], names: set[str]) -> None:
    """Raise :class:`ConfigError` unless what a guide sampled is a Gaussian over its weights.

    Args:
        fns: site → distribution of all that was sampled for the weights.
        names: those that are weights; any other must be a point, for given its draws the weights are Gaussian, and over
            them a mixture.
    """
    for name, fn in fns.items():
        family = type(base_distribution(fn)).__name__
        if name in names and not is_gaussian(fn):
            raise ConfigError(
                f"linearised='outputs' and 'probit' need a posterior that is Gaussian over all weights, and that of "
                f"{name!r} is a {family}. Take linearised=True, which draws weights of any posterior with a mean."
            )
        if name not in names and not isinstance(base_distribution(fn), Delta):
            raise ConfigError(
                f"linearised='outputs' and 'probit' need a posterior that is Gaussian over all weights; over draws of "
                f"{name!r} ({family}) it is a mixture. Take linearised=True, which draws both."
            )


def require_some_weights(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` where no weight is random, so that outputs are linear in nothing."""
    if not model.latent_sites:
        raise ConfigError(
            f"linearised needs random weights, and this {type(model).__name__} has none: its outputs are those of one "
            "point. Leave linearised out, or give it a posterior first, by bayes_adapters.surgery.laplace."
        )


def require_formula(likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` unless ``likelihood`` has a predictive that needs no draws of Gaussian outputs."""
    if not likelihood.has_expected:
        raise ConfigError(
            f"linearised='probit' is for Categorical, Bernoulli, Gaussian and MultiGaussian; got "
            f"{type(likelihood).__name__}. Take linearised='outputs', whose draws cost next to nothing."
        )
