"""KL(q ‖ p) of a sample site and statistics of its posterior, and a site's record that keeps nothing else."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_adapters.distributions import base_distribution
from bayes_adapters.inference._guide_checks import require_gradient
from bayes_adapters.sites import SITE, SiteCall, Summary

SAME = "posterior_is_prior"
"""The key of whether a site's posterior is its prior itself, in a sample statement's ``infer`` dictionary."""


def divergence(guide_site: Any, prior: Any) -> Tensor:
    """Return KL(q ‖ p) of a site, shape of q's batch, or its estimate at the draw where there is no closed form."""
    q, value = guide_site["fn"], guide_site["value"]
    if guide_site["infer"].get(SAME):
        return torch.zeros(q.batch_shape, device=value.device)
    try:
        return kl_divergence(q, prior)
    except NotImplementedError:
        call: SiteCall | None = guide_site["infer"].get(SITE)
        if call is not None and value is call.point:
            value = q.rsample()  # local reparametrisation's value is q's mean, at which log q/p is not its average
        estimate: Tensor = q.log_prob(value) - prior.log_prob(value)
        return estimate


def scale_statistics(site: Any) -> Tensor | None:
    """Return mean, minimum and maximum of the posterior's standard deviations at real tokens; None without any."""
    call: SiteCall = site["infer"][SITE]
    scale = getattr(base_distribution(site["fn"]), "scale", None)
    if scale is None or not scale.numel():
        return None
    scale = scale.detach()
    if call.token_mask is not None:
        single = (slice(None),) * len(call.site.event)
        scale = scale.expand(site["fn"].shape())[(..., call.token_mask, *single)]
        if not scale.numel():
            return None
    return torch.stack([scale.mean(), scale.min(), scale.max()])


def summarised(site: Any) -> Any:
    """Return a site's record with its :class:`Summary`, and without the posterior's parameters and the draw.

    A block or site that runs again in backward recomputes them; whoever kept them would undo that.
    """
    summary: Summary = site["infer"][SITE].summary
    require_gradient(site["name"], site)
    prior, shape = site["infer"]["prior"], site["fn"].batch_shape
    summary.divergence = divergence(site, prior if prior.batch_shape == shape else prior.expand(shape))
    summary.scales = scale_statistics(site) if summary.with_scales else None
    nothing = site["value"].new_zeros(()).expand(site["value"].shape)
    stands_in = dist.Delta(nothing, event_dim=site["fn"].event_dim)
    return {**site, "fn": stands_in, "value": nothing}
