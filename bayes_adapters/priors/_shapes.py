"""How a distribution given as a prior becomes one over a single draw of a site."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin

from bayes_adapters.priors._checks import misfit, require_distribution

if TYPE_CHECKING:
    from bayes_adapters.sites import Site


def fitted(prior: Any, site: Site) -> TorchDistributionMixin:
    """Expand ``prior`` to the site's shape, entries that it leaves independent staying batch dimensions.

    Args:
        prior: a distribution whose batch and event shape broadcast to ``site.shape``.
        site: the site.

    Returns:
        The distribution inside any outermost ``Independent``, with batch shape + event shape = ``site.shape``. Its
        event may be the whole of a global site: it then joins the layers.

    Raises:
        ConfigError: it is no Pyro distribution, or its shape does not broadcast.
    """
    require_distribution(prior, site)
    base: Any = prior
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    shape = tuple(base.batch_shape + base.event_shape)
    free = len(site.shape) - base.event_dim
    try:
        if base.event_dim > len(site.shape):
            raise ValueError(f"its {base.event_dim} event dimensions are more than the {len(site.shape)} of the site")
        whole = base if base.batch_shape == site.shape[:free] else fresh(base).expand(torch.Size(site.shape[:free]))
        if whole.batch_shape + whole.event_shape != torch.Size(site.shape):
            raise ValueError(f"its shape is {shape}")
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise misfit(base, shape, site, error) from error
    return whole


def single(whole: TorchDistributionMixin, site: Site) -> TorchDistributionMixin:
    """Return what :func:`fitted` made as a distribution over one draw: event shape ``site.event``.

    What joins the layers of a global site has no such part; its event shape stays ``site.shape``.
    """
    one: TorchDistributionMixin = fresh(whole).to_event(max(0, len(site.event) - whole.event_dim))
    return one


def fresh(distribution: Any) -> Any:
    """Return ``distribution``, copied as far as Pyro's ``ExpandedDistribution.expand`` would change it in place."""
    if isinstance(distribution, ExpandedDistribution):
        return copy.copy(distribution)
    inner = getattr(distribution, "base_dist", None)
    if isinstance(distribution, torch.distributions.Independent | MaskedDistribution) and fresh(inner) is not inner:
        distribution = copy.copy(distribution)
        distribution.base_dist = fresh(inner)
    return distribution
