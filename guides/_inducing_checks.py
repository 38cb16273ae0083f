"""What a posterior of inducing weights refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, whole_number
from bayes_adapters.sites import Site


def require_sides(inducing: Sequence[int]) -> tuple[int, int]:
    """Return (M_r, M_c); raise :class:`ConfigError` unless ``inducing`` is a pair of sizes."""
    if not isinstance(inducing, Sequence) or len(inducing) != 2:
        raise ConfigError(f"inducing is a pair, the rows and columns of U; got {inducing!r}. Give, say, (4, 8).")
    for name, size in zip(("rows", "columns"), inducing, strict=True):
        whole_number(f"inducing, {name} of U,", size)
    return (inducing[0], inducing[1])


def prior_deviation(prior: Any, site: Site) -> Tensor:
    """Return the prior's standard deviation; raise :class:`ConfigError` where there is none that is finite."""
    try:
        deviation: Tensor = prior.stddev
    except NotImplementedError:
        deviation = prior.sample().new_full((), float("nan"))
    if not bool(deviation.isfinite().all()) or not bool(prior.mean.isfinite().all()):
        raise ConfigError(
            f"The weights of {site.name!r} follow U by the conditional of a Gaussian of the prior's mean and "
            f"standard deviation, and its prior {type(base_distribution(prior)).__name__} has none that are finite. "
            "Take Normal, Laplace or a StudentT of more than 2 degrees of freedom."
        )
    return deviation
