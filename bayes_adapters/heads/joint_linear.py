"""A linear head whose random weights are the model's own sites, so that one guide joins them with the adapters."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.adapters.reparametrisation import Draw
from bayes_adapters.heads.head import Head
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import Granularity, Part, Site

WEIGHT, BIAS = "head.weight", "head.bias"


class JointLinear(Head):
    """``f = W pool(h) + b`` with W, shape (K, d), and b, shape (K,), under the model's prior and its guide's posterior.

    :class:`BayesianLinear` brings a posterior of its own, independent of the adapters'. Here the guide of the model
    infers adapters and head together, so it has to serve weights: ``Laplace``, ``LowRank``, ``SWAG``, ``StoredDraws``,
    ``MeanField``, ``Delta``. The model needs ``num_data``.

    Args:
        pooling: see :class:`Pooling`; None is the mean, or none at all where the likelihood has one target per token.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Categorical
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Categorical(3), rank=2, head=JointLinear(), num_data=100)
    >>> [(site.name, site.shape) for site in model.sites]
    [('A.global', (2, 2, 8)), ('head.weight', (1, 3, 8)), ('head.bias', (1, 3))]
    """

    name: ClassVar[str] = "joint_linear"

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        events = {WEIGHT: (likelihood.num_outputs, width), BIAS: (likelihood.num_outputs,)}
        return [Site(name, Part.FACTOR, (name,), event, Granularity.GLOBAL) for name, event in events.items()]

    def build(self, width: int, likelihood: Likelihood) -> None:
        """Nothing of its own: the weights are drawn."""

    def forward(self, features: Float[Tensor, "rows *T d"]) -> Float[Tensor, "rows *T K"]:
        outputs, bias = self.drawn(WEIGHT).times(features), self.drawn(BIAS)
        each = bias.value.reshape(-1, 1, outputs.shape[-1])  # of each sample; rows are [sample, example, token]
        shift = each.expand(-1, outputs.shape[:-1].numel() // len(each), -1).reshape(outputs.shape)
        if isinstance(bias, Draw) and bias.watch is not None:
            bias.watch(torch.ones_like(shift), shift)  # b ⊙ 1
        return outputs + shift
