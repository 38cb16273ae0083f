"""What optimisers and samplers refuse of a model and its guide."""

from __future__ import annotations

from typing import Any

from bayes_adapters.errors import ConfigError, positive_number
from bayes_adapters.guides import MeanField
from bayes_adapters.guides.mean_field import ScaleParameter
from bayes_adapters.inference._draw_checks import require_global
from bayes_adapters.inference._pair_checks import require_pair


def require_mean_field(model: Any, guide: Any) -> MeanField:
    """Return ``guide``; raise :class:`ConfigError` unless it is a Gaussian over weights by its mean and log σ."""
    require_pair(model, guide)
    if not isinstance(guide, MeanField) or guide.parameter is not ScaleParameter.LOG or guide.positive_mean:
        own = f"{type(guide).__name__}({', '.join(f'{k}={v!r}' for k, v in guide.config().items())})"
        raise ConfigError(
            f"IVON trains a Gaussian by its means and log standard deviations, MeanField(model); got {own}. Build the "
            "guide without parameter= and positive_mean=; build('blob', …, parameter='log') does so for a system."
        )
    require_global(model.sites)
    return guide


def check_rates(betas: Any, **positive: Any) -> None:
    """Raise :class:`ConfigError` unless both β lie in [0, 1) and the numbers are positive."""
    for name, value in positive.items():
        positive_number(name, value)
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ConfigError(f"betas are two numbers from 0 to below 1, such as (0.9, 0.999); got {betas!r}.")
