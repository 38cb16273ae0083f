"""``Delta``: a point estimate of each layer's core (maximum a posteriori), or nothing when E = I (plain LoRA)."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import biject_to

from bayes_adapters.guides._checks import no_bijection, require_inside
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part, Site, SiteCall


class Delta(AdapterGuide):
    """``q(E_l) = δ(E_l − Ê_l)`` with one free matrix Ê_l per layer; "KL" is −log p(Ê_l), so the ELBO is the log-joint.

    For local sites every token shares Ê_l. Ê_l starts at a draw from the prior (torch's generator): E = 0 together with
    B = 0 would give exactly zero gradients. Under a prior on a part of the reals (HalfNormal, Uniform) the parameter is
    unconstrained and Ê_l its image under torch's ``biject_to(support)``, without a Jacobian: the maximum is that of
    the density of E.

    Args:
        model: any model; without core sites the guide is empty and training is maximum likelihood.

    Raises:
        ConfigError: a site whose start does not lie in its prior's support, or a discrete prior.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2, targets=["query"])
    >>> [tuple(value.shape) for value in Delta(model).parameters()]
    [(2, 2)]
    """

    name: ClassVar[str] = "delta"
    serves: ClassVar[frozenset[Granularity]] = frozenset(Granularity)
    parts: ClassVar[frozenset[Part]] = REAL
    all_reals: ClassVar[bool] = False
    needs_sites: ClassVar[bool] = False

    def __init__(self, model: AdapterModel) -> None:
        super().__init__(model)
        self.loc = nn.ParameterDict({site_key(s): nn.Parameter(_start(model, s)) for s in model.sites})

    @property
    def deterministic(self) -> bool:
        return True

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        return dist.Delta(_onto(prior)(self.loc[site_key(call.site)]), event_dim=len(call.site.event))

    def config(self) -> dict[str, Any]:
        return {}


def _onto(prior: TorchDistributionMixin) -> Any:
    """The bijection from all reals onto the prior's support; the identity for a prior on all reals."""
    try:
        return biject_to(prior.support)
    except NotImplementedError:
        raise no_bijection(prior) from None


def _start(model: AdapterModel, site: Site) -> Tensor:
    prior = model.prior.of(site)
    start: Tensor = _onto(prior).inv(model.start(site))
    require_inside(site, prior, start)
    return start
