"""Several encoders, each with random cores that are drawn once for the data set, for one head."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models.concat_lora import ConcatLoRA
from bayes_adapters.priors import PriorLike
from bayes_adapters.sites import Granularity, Part


class ConcatCore(ConcatLoRA):
    """``h = W₀ x + (α/r) B E A x``, ``E ~ prior``, in every encoder of :class:`ConcatLoRA`; one E per data set.

    The encoders do not see each other, and a draw is one function of all inputs: with the likelihood
    :class:`~bayes_adapters.likelihoods.Contrastive` it is a posterior over both towers, under which each side can be
    embedded alone. Guides of weights serve it: ``MeanField``, ``LowRank``, ``SWAG`` and others.

    Args:
        backbone: see :class:`ConcatLoRA`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        num_data: N, the size of the data set.
        prior: of the cores; None means N(0, 0.2²).
        **options: options of :class:`ConcatLoRA`.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters.likelihoods import Contrastive
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> encoders = nn.ModuleDict({"question": BertModel(tiny), "answer": BertModel(tiny)})
    >>> model = ConcatCore(encoders, Contrastive(4), num_data=100, rank=2, targets=["query", "value"])
    >>> [(site.name, site.shape) for site in model.sites]
    [('core.global', (4, 2, 2))]
    """

    structure: ClassVar[str] = "concat_core"

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        num_data: int,
        prior: PriorLike | None = None,
        **options: Any,
    ) -> None:
        random: dict[str, Any] = {"parts": [Part.CORE], "granularity": Granularity.GLOBAL, "prior": prior}
        super().__init__(backbone, likelihood, num_data=num_data, **random, **options)

    def config(self) -> dict[str, Any]:
        return super().config() | {"num_data": self.num_data}
