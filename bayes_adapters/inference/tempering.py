"""Posterior temperature after training: draws with their spread about the posterior's mean scaled."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from bayes_adapters.distributions import mean_of
from bayes_adapters.errors import ConfigError, positive_number
from bayes_adapters.inference.joint import JOINT
from bayes_adapters.sites import SITE, SiteCall


class Tempering(Messenger):
    """Scale every draw of a posterior about its mean: ``w ↦ m + √τ (w − m)``, m = E_q w.

    Density: the draws then follow ``q_τ(w) = τ^(−D/2) q(m + (w − m) / √τ)``, D the number of entries of w, which has
    the same mean and τ times the covariance. For a Gaussian it is ``q^(1/τ)`` normalised, ``N(m, τ Σ)``: τ < 1 is
    colder, nearer a point; τ > 1 warmer. For other families it is a change of scale and not that power: a mixture keeps
    the shares of its components.

    A draw of a later site is scaled about its mean given the draws before it, as scaled. Points stay where they are.

    Args:
        temperature: τ > 0.

    Raises:
        ConfigError: τ is not positive and finite; or, in a pass, a site is discrete, its mean is not known, or it is a
            head's that is integrated out.

    >>> import pyro, pyro.distributions as dist
    >>> from bayes_adapters.sites import Granularity, Part, Site
    >>> site = Site("E", Part.CORE, ("layer",), (2, 2), Granularity.GLOBAL)
    >>> posterior = dist.Normal(torch.ones(2, 2), 1.0).to_event(2)
    >>> with Tempering(0.25):
    ...     colder = pyro.sample("E", posterior, infer={"site": SiteCall(site)})
    >>> colder.shape
    torch.Size([2, 2])
    """

    def __init__(self, temperature: float) -> None:
        super().__init__()
        positive_number("temperature", temperature)
        self.temperature = float(temperature)

    def _pyro_post_sample(self, msg: Any) -> None:
        call: SiteCall | None = msg["infer"].get(SITE)
        if msg["is_observed"] or (call is None and msg["name"] != JOINT):
            return
        if call is not None and (call.moments is not None or not call.site.part.real):
            raise _no_spread(call)
        mean = mean_of(msg["fn"], msg["name"])
        msg["value"] = torch.lerp(mean.expand_as(msg["value"]), msg["value"], self.temperature**0.5)


def temperature_of(guide: object, given: float | None = None) -> float:
    """Return τ: the one that is given, or else the guide's own ``posterior_temperature``; 1 of what has none.

    Raises:
        ConfigError: it is not positive and finite.

    >>> temperature_of(lambda batch: None), temperature_of(None, 0.5)
    (1.0, 0.5)
    """
    if given is not None:
        positive_number("temperature", given)
        return float(given)
    own = getattr(guide, "posterior_temperature", 1.0)
    positive_number("posterior_temperature", own)
    return float(own)


def _no_spread(call: SiteCall) -> ConfigError:
    what = "is integrated out, so that there is no draw" if call.site.part.real else "is discrete"
    return ConfigError(
        f"A temperature scales draws about their mean, and {call.site.name!r} {what}. Predict with temperature=1, "
        "and leave the guide's posterior_temperature at 1."
    )
