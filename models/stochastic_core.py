"""LoRA with a random core: the model of C-LoRA, CALIBER and the fixed-E control."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.priors import PriorLike
from bayes_adapters.sites import Granularity, Part


class StochasticCore(AdapterModel):
    """``h = W₀ x + (α/r) B E A x``, ``E ~ prior``. The guide decides what E depends on.

    Source: C-LoRA, arXiv 2505.17773 (prior N(0, 0.2²), one core per token and layer).

    Args:
        backbone: see :class:`AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        granularity: ``"token"``, ``"sequence"`` or ``"global"`` (then pass ``num_data``).
        prior: a Pyro distribution, pattern → distribution, or ``callable(name, shape)``; None means N(0, 0.2²).
        **options: further options of :class:`AdapterModel`.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2, targets=["query"])
    >>> [(site.name, site.shape) for site in model.sites]
    [('core.encoder.layer.0.attention.self.query', (2, 2))]
    """

    structure: ClassVar[str] = "stochastic_core"

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        granularity: Granularity | str = Granularity.TOKEN,
        prior: PriorLike | None = None,
        **options: Any,
    ) -> None:
        super().__init__(backbone, likelihood, parts=[Part.CORE], granularity=granularity, prior=prior, **options)

    def config(self) -> dict[str, Any]:
        return super().config() | {"granularity": self.granularity, "num_data": self.num_data}
