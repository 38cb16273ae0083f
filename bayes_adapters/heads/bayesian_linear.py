"""A linear head with random weights under a mean-field Gaussian posterior of its own."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.heads._augmented import read_scales
from bayes_adapters.heads.head import Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.posterior import HeadPosterior, IndependentGaussians
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import Granularity, Part, Site

WEIGHT, BIAS = "head.weight", "head.bias"


class BayesianLinear(Head):
    """``f = W pool(h) + b`` with random W, shape (K, d), and b, shape (K,).

    Prior ``W_kj ~ N(0, s₀²/d)``, ``b_k ~ N(0, s₀²)``: where features have entries of about 1, as behind a layer norm,
    each output has a standard deviation of about s₀. Posterior ``q = Π_i N(μ_i, σ_i²)`` over every entry, with one KL
    per data set, so the model needs ``num_data``.

    The head brings prior and posterior, so it stands beside any guide: a posterior over adapters (MeanField,
    Contextual, CrossAttention, RankWise, LowRank, MCDropout, …), and points (Delta for LoRA, Hypernetwork for CoLA),
    where the head alone is random. The guide holds μ and log σ, as ``guide.head_posterior``. A draw of W is one
    function of all tokens and examples. Pyro's own guides, and MCMC, see the sites ``head.weight`` and ``head.bias``
    under the same prior.

    Args:
        prior_scale: s₀ > 0.
        init_scale: σ at the start as a part of the prior's standard deviation; μ starts as torch's linear layer does.
        bias: whether there is a b.
        pooling: see :class:`Pooling`; None is the mean, or none at all where the likelihood has one target per token.

    Source: Blundell et al. 2015, arXiv 1505.05424, of the last layer only.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Categorical, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny), Categorical(3), rank=2, head=BayesianLinear(), num_data=100)
    >>> guide = Delta(model)  # the adapters are points, and the head is not
    >>> [(name, tuple(value.shape)) for name, value in guide.named_parameters()][:2]
    [('head_posterior.loc.head-weight', (1, 3, 8)), ('head_posterior.loc.head-bias', (1, 3))]
    >>> answer = predict(model, guide, Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])}), num_samples=8)
    >>> answer.probs.shape, bool((answer.epistemic > 0).all())
    (torch.Size([2, 3]), True)
    """

    name: ClassVar[str] = "bayesian_linear"

    def __init__(
        self,
        *,
        prior_scale: float = 1.0,
        init_scale: float = 0.1,
        bias: bool = True,
        pooling: Pooling | str | None = None,
    ) -> None:
        super().__init__(pooling)
        self.prior_scale, self.init_scale = read_scales(prior_scale, init_scale)
        self.bias = bias

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        events = {WEIGHT: (likelihood.num_outputs, width)} | ({BIAS: (likelihood.num_outputs,)} if self.bias else {})
        return [Site(name, Part.FACTOR, (name,), event, Granularity.GLOBAL) for name, event in events.items()]

    def prior(self, site: Site) -> TorchDistributionMixin:
        return dist.Normal(torch.zeros(site.event), torch.full(site.event, self._prior_scale(site)))

    def posterior(self, sites: list[Site], likelihood: Likelihood) -> HeadPosterior:
        linear = nn.Linear(sites[0].event[1], sites[0].event[0])
        starts = {WEIGHT: linear.weight, BIAS: linear.bias}
        scales = {site.name: self.init_scale * self._prior_scale(site) for site in sites}
        return IndependentGaussians(sites, starts, scales)

    def build(self, width: int, likelihood: Likelihood) -> None:
        """Nothing of its own: the weights are drawn."""

    def forward(self, features: Float[Tensor, "rows *T d"]) -> Float[Tensor, "rows *T K"]:
        outputs = self.drawn(WEIGHT).times(features)
        if not self.bias:
            return outputs
        bias = self.drawn(BIAS).value
        bias = bias.reshape(-1, 1, bias.shape[-1])  # of each sample; rows are [sample, example, token]
        return (outputs.reshape(len(bias), -1, bias.shape[-1]) + bias).reshape(outputs.shape)

    def config(self) -> dict[str, Any]:
        own = {"prior_scale": self.prior_scale, "init_scale": self.init_scale, "bias": self.bias}
        return super().config() | own

    def _prior_scale(self, site: Site) -> float:
        return self.prior_scale / math.sqrt(site.event[1]) if site.name == WEIGHT else self.prior_scale
