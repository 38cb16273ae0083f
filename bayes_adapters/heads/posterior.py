"""The posterior that a head brings for its own random weights, so that any guide of the adapters serves beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.sites import Site, SiteCall


class HeadPosterior(nn.Module):
    """Base of the posteriors of a head's sites.

    A guide holds one as ``guide.head_posterior``; its parameters are trained, saved and frozen with the guide's.
    """

    draws = True
    """Whether draws of the sites differ from pass to pass, so that prediction takes several."""

    def forward(self, call: SiteCall) -> TorchDistributionMixin:
        """Return q of the site ``call.site``: batch shape broadcasting to (1,), event shape ``call.site.event``."""
        raise NotImplementedError


class IndependentGaussians(HeadPosterior):
    """``q(W) = Π_i N(μ_i, σ_i²)`` over every entry of every site, with free μ and log σ.

    Args:
        sites: the sites.
        starts: site → μ at the start, shape ``site.shape``.
        scales: site → σ at the start, one number.

    >>> from bayes_adapters.sites import Granularity, Part
    >>> site = Site("head.bias", Part.FACTOR, ("head.bias",), (3,), Granularity.GLOBAL)
    >>> q = IndependentGaussians([site], {"head.bias": torch.zeros(1, 3)}, {"head.bias": 0.1})
    >>> q(SiteCall(site)).event_shape, [name for name, _ in q.named_parameters()]
    (torch.Size([3]), ['loc.head-bias', 'log_scale.head-bias'])
    """

    def __init__(self, sites: Sequence[Site], starts: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.ParameterDict(), nn.ParameterDict()
        for site in sites:
            start = starts[site.name].detach().clone().reshape(site.shape)
            self.loc[_key(site)] = nn.Parameter(start)
            self.log_scale[_key(site)] = nn.Parameter(torch.full_like(start, math.log(scales[site.name])))

    def forward(self, call: SiteCall) -> TorchDistributionMixin:
        key = _key(call.site)
        q = dist.Normal(self.loc[key], self.log_scale[key].exp(), validate_args=False)
        return q.to_event(len(call.site.event))


def _key(site: Site) -> str:
    """A site's name as a key of ``nn.ParameterDict``, which allows no dots."""
    return site.name.replace(".", "-")
