"""``Delta``: a point estimate of each layer's core (maximum a posteriori), or nothing when E = I (plain LoRA)."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from bayes_adapters.guide import AdapterGuide, site_key
from bayes_adapters.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part, SiteCall


class Delta(AdapterGuide):
    """``q(E_l) = δ(E_l − Ê_l)`` with one free matrix Ê_l a layer; "KL" is −log p(Ê_l), so the ELBO is the log-joint.

    For local sites every token shares Ê_l. Ê_l starts at a draw from the prior (torch's generator): E = 0 together with
    B = 0 would give exactly zero gradients.

    Args:
        model: any model; without core sites the guide is empty and training is maximum likelihood.
    """

    name: ClassVar[str] = "delta"
    serves: ClassVar[frozenset[Granularity]] = frozenset(Granularity)
    parts: ClassVar[frozenset[Part]] = REAL
    all_reals: ClassVar[bool] = False
    needs_sites: ClassVar[bool] = False

    def __init__(self, model: AdapterModel) -> None:
        super().__init__(model)
        self.loc = nn.ParameterDict({site_key(s): nn.Parameter(model.start(s)) for s in model.sites})

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        return dist.Delta(self.loc[site_key(call.site)], event_dim=len(call.site.event))

    def config(self) -> dict[str, Any]:
        return {}
