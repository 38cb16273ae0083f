"""What a model with gates refuses."""

from __future__ import annotations

import torch

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Part


def check_keep(keep: object) -> None:
    """Raise :class:`ConfigError` unless ``keep`` is a probability of which neither outcome is certain."""
    if not isinstance(keep, int | float) or not 0.0 < keep < 1.0:
        raise ConfigError(f"keep is the prior probability of a rank and must lie in (0, 1); got {keep!r}.")


def check_gates(model: AdapterModel) -> None:
    """Raise :class:`ConfigError` if a gate's prior is no Bernoulli, or certain, or something else has that prior."""
    for site in model.sites:
        if site.part != Part.GATE:
            raise ConfigError(
                f"The prior of a GatedLoRA is of gates, so {site.name!r} of the {type(model.head).__name__} has none. "
                "Take a head without random weights, or one that brings its own prior."
            )
        prior = model.prior.of(site)
        sure = not isinstance(base_distribution(prior), torch.distributions.Bernoulli)
        if sure or not bool(((prior.mean > 0) & (prior.mean < 1)).all()):
            raise ConfigError(
                f"The prior of {site.name!r} must be a Bernoulli with probabilities in (0, 1); got a "
                f"{type(base_distribution(prior)).__name__}. For gates that are always open take LoRA."
            )
