"""What draws until each example is known refuse."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods import Likelihood


def require_tolerance(tolerance: object) -> None:
    """Raise :class:`ConfigError` unless it is a finite number above 0."""
    number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not number or not 0 < float(tolerance) < math.inf:  # type: ignore[arg-type]
        raise ConfigError(
            f"tolerance is the largest error of an example's mean, a finite number above 0; got {tolerance!r}. Of "
            "probabilities .02 is two hundredths; of numbers it is in units of the target."
        )


def require_one_by_one(likelihood: Likelihood, guide: object, options: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` unless examples may have different numbers of draws.

    Args:
        likelihood: of the model.
        guide: where draws come from.
        options: name → whether it was given, of options that say otherwise.
    """
    for option, given in options.items():
        if given:
            raise ConfigError(
                f"tolerance draws until each example is known, and cannot be had with {option}. Leave one of them out."
            )
    if isinstance(guide, Mapping):
        raise ConfigError(
            "tolerance decides how many draws are made, and these were made before, some of a chain after one another: "
            "all of them, or num_samples spread evenly over them, are taken. Leave tolerance out."
        )
    if likelihood.holds_draws or likelihood.two_sides:
        raise ConfigError(
            f"tolerance gives each example its own number of draws, and {type(likelihood).__name__} reads all draws, "
            "or all examples of a batch, together. Leave it out, and choose num_samples."
        )
