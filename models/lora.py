"""Plain LoRA: E = I, nothing is random."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood


class LoRA(AdapterModel):
    """``h = W₀ x + (α/r) B A x``. With the ``Delta`` guide, training is maximum likelihood.

    Source: Hu et al. 2021, arXiv 2106.09685.

    Args:
        backbone: see :class:`AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        **options: the options of :class:`AdapterModel` that do not concern random parts.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny), Bernoulli(), rank=2)
    >>> model.sites, list(model.ranks.values())
    ([], [2, 2])
    """

    structure: ClassVar[str] = "lora"

    def __init__(self, backbone: nn.Module, likelihood: Likelihood, **options: Any) -> None:
        super().__init__(backbone, likelihood, **options)
