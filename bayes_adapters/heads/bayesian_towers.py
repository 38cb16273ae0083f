"""``BayesianTowers``: two embeddings by random matrices, under a mean-field Gaussian posterior of the head's own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.heads._augmented import read_scales
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.posterior import HeadPosterior, IndependentGaussians
from bayes_adapters.heads.two_towers import TwoTowers
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import Granularity, Part, Site

SITES = ("head.first", "head.second")


class BayesianTowers(TwoTowers):
    """``u = P₁ h¹``, ``v = P₂ h²`` with random P₁, shape (d, d₁), and P₂, shape (d, d₂).

    Prior ``P_kj ~ N(0, s₀²/d_i)``, posterior ``q = Π N(μ, σ²)`` over every entry, with one KL per data set: the model
    needs ``num_data``. A draw of both matrices is one function of all rows, so all candidates of a pass are embedded by
    the same P. The length of an embedding counts nowhere, so its scale is the prior's to say, and a small σ/‖P‖ is what
    makes similarities certain. It stands beside any guide, also beside ``Delta`` of :class:`ConcatLoRA`, where it alone
    is random.

    Args:
        first: names of the encoders of the first side; None is the first of two.
        prior_scale: s₀ > 0.
        init_scale: σ at the start as a part of the prior's standard deviation.
        pooling: see :class:`TwoTowers`.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.likelihoods import Contrastive
    >>> from bayes_adapters.models import ConcatLoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> encoders = nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)})
    >>> model = ConcatLoRA(encoders, Contrastive(5), rank=2, head=BayesianTowers(), num_data=100)
    >>> [(name, tuple(value.shape)) for name, value in Delta(model).head_posterior.loc.items()]
    [('head-first', (1, 5, 8)), ('head-second', (1, 5, 8))]
    """

    name: ClassVar[str] = "bayesian_towers"

    def __init__(
        self,
        first: Sequence[str] | None = None,
        *,
        prior_scale: float = 1.0,
        init_scale: float = 0.1,
        pooling: Pooling | str | None = None,
    ) -> None:
        super().__init__(first, pooling)
        self.prior_scale, self.init_scale = read_scales(prior_scale, init_scale)

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        dim = likelihood.num_outputs // 2
        shapes = zip(SITES, self.widths, strict=True)
        return [Site(name, Part.FACTOR, (name,), (dim, own), Granularity.GLOBAL) for name, own in shapes]

    def prior(self, site: Site) -> TorchDistributionMixin:
        return dist.Normal(torch.zeros(site.event), torch.full(site.event, self._scale(site)))

    def posterior(self, sites: list[Site], likelihood: Likelihood) -> HeadPosterior:
        starts = {site.name: nn.Linear(site.event[1], site.event[0], bias=False).weight for site in sites}
        return IndependentGaussians(sites, starts, {site.name: self.init_scale * self._scale(site) for site in sites})

    def build(self, width: int, likelihood: Likelihood) -> None:
        """Nothing of its own: the matrices are drawn."""

    def forward(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows K"]:
        parts = zip(self.split(features), SITES, strict=True)
        return torch.cat([self.drawn(name).times(own) for own, name in parts], -1)

    def config(self) -> dict[str, Any]:
        return super().config() | {"prior_scale": self.prior_scale, "init_scale": self.init_scale}

    def _scale(self, site: Site) -> float:
        return self.prior_scale / math.sqrt(site.event[1])
