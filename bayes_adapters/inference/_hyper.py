"""The posterior of a prior's hyper-parameters."""

from __future__ import annotations

from collections.abc import Iterable

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn
from torch.distributions import constraints

from bayes_adapters.priors import HyperSite, bijection


class HyperPosterior(nn.Module):
    """``q(τ) = Π_j f_#N(μ_j, σ_j²)``: a Gaussian on the unconstrained space, mapped onto the support by f.

    f is :func:`bayes_adapters.priors.bijection` of the support: exp for a positive number, so that q is log-normal; of
    real numbers q is the Gaussian itself, whose KL from a Gaussian prior is closed. μ
    starts at 0, where τ is the hyper-parameter's start, and log σ at log 0.1.

    Args:
        sites: the hyper-parameters.
        device: where the parameters are made.
    """

    def __init__(self, sites: Iterable[HyperSite], device: torch.device) -> None:
        super().__init__()
        self.sites = {site.name: site for site in sites}
        self.loc, self.log_scale = nn.ParameterDict(), nn.ParameterDict()
        for name, site in self.sites.items():
            shape = bijection(site.support).inverse_shape(site.start.shape)
            self.loc[_key(name)] = nn.Parameter(torch.zeros(shape, device=device))
            self.log_scale[_key(name)] = nn.Parameter(torch.full(shape, 0.1, device=device).log())

    def posterior(self, name: str) -> TorchDistributionMixin:
        """Return q of the hyper-parameter ``name``; event shape that of its sample site, batch shape ()."""
        loc, onto = self.loc[_key(name)], bijection(self.sites[name].support)
        base = dist.Normal(loc, self.log_scale[_key(name)].exp(), validate_args=False)
        base = base.to_event(loc.dim()) if loc.dim() else base  # for a number, of a form whose KL torch knows
        if _is_real(self.sites[name].support):
            return base
        return dist.TransformedDistribution(base, [onto], validate_args=False)


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real


def _key(name: str) -> str:
    """A site's name as a key of ``nn.ParameterDict``, which allows no dots."""
    return name.replace(".", "-")
