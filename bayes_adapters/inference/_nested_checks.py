"""What draws of weights with draws of local latents within each of them refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import SITE, Granularity, SiteCall


def require_nested(model: AdapterModel, guide: object, *, mean_only: bool, seed: int | None, linearised: bool) -> None:
    """Raise :class:`ConfigError` unless prediction can draw local latents anew for each draw of the weights."""
    if not isinstance(guide, AdapterGuide):
        raise ConfigError(
            f"local_samples draws local latents within each draw of the weights, and a {type(guide).__name__} gives "
            "both at once. Take a guide of this library, or leave it out."
        )
    set_otherwise = {"mean_only=True": mean_only, "seed=None": seed is None, "linearised=True": linearised}
    for option, given in set_otherwise.items():
        if given:
            raise ConfigError(
                f"local_samples cannot be had with {option}: it takes keyed draws of both, so that "
                "all draws of the weights see the same local noise. Leave one of them out."
            )
    if all(site.granularity is Granularity.GLOBAL for site in model.sites):
        raise ConfigError(
            f"local_samples draws latents of examples or tokens, and this {type(model).__name__} has none: its random "
            "parts are weights of the data set. Leave it out, or build the model with granularity='token' or "
            "'sequence'."
        )


def require_no_moments(nodes: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` if a head's weights were integrated out: that spread is no local latent's."""
    for node in nodes.values():
        call: SiteCall | None = node["infer"].get(SITE) if node["type"] == "sample" else None
        if call is not None and call.moments is not None:
            raise ConfigError(
                f"{call.site.name!r} is integrated out, which local_samples cannot tell from what local latents add. "
                "Take the head BayesianLinear, whose weights are drawn, or leave local_samples out."
            )
