"""``MCDropout``: the posterior of a keep mask is its prior, in training and at prediction (BayesLoRA, June 2025)."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin

from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.sites import Granularity, Part, SiteCall


class MCDropout(AdapterGuide):
    """``q(m) = p(m) = Π_i Bernoulli(m_i; 1 − p)``; the KL is 0 and nothing is trained.

    Only the adapters' masks are random: every dropout of the backbone stays off while sampling, because ``predict``
    puts the modules into eval mode and the masks are sample sites, not modules.

    Source: Gal and Ghahramani 2016, arXiv 1506.02142; inside adapters: BayesLoRA, arXiv 2506.22809 v1.

    Args:
        model: a model with mask sites, such as AdapterDropout.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.models import AdapterDropout
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = AdapterDropout(BertModel(tiny), Bernoulli(), rank=2)
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])})
    >>> predict(model, MCDropout(model), batch, num_samples=4).mean.shape
    torch.Size([2])
    """

    name: ClassVar[str] = "mc_dropout"
    serves: ClassVar[frozenset[Granularity]] = frozenset(Granularity)
    parts: ClassVar[frozenset[Part]] = frozenset({Part.MASK})

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        return prior

    def config(self) -> dict[str, Any]:
        return {}
