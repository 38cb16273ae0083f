"""LoRA with random A and B: the model of BayesLoRA's rank-wise variational dropout (January 2026)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bayes_adapters.distributions import LogUniform
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models._factor_checks import read_factors
from bayes_adapters.priors import PriorLike
from bayes_adapters.sites import Granularity


class StochasticFactors(AdapterModel):
    """``h = W₀ x + (α/r) B A x``, ``A_ij ~ prior``, ``B_ki ~ prior``, one site for each factor of each layer.

    A layer may lose ranks, see :func:`bayes_adapters.surgery.pruning.prune`; the scale stays α/r with the r given here.
    The default prior ``p(w) ∝ 1/|w|`` has no draws, so the model runs under a guide only.

    Source: BayesLoRA, arXiv 2506.22809 v3.

    Args:
        backbone: see :class:`AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        num_data: N, the size of the data set.
        prior: of A and B, see :mod:`bayes_adapters.priors`; None means :class:`LogUniform`.
        factors: ``"AB"``, or ``"A"`` or ``"B"`` for one of them; the other is then a parameter, as in a LoRA.
        **options: further options of :class:`AdapterModel`.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticFactors(BertModel(tiny), Bernoulli(), num_data=100, rank=2, targets=["query"])
    >>> [(site.name[:9], site.shape) for site in model.sites]
    [('A.encoder', (1, 2, 8)), ('B.encoder', (1, 8, 2))]
    """

    structure: ClassVar[str] = "stochastic_factors"

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        num_data: int,
        prior: PriorLike | None = None,
        factors: str = "AB",
        **options: Any,
    ) -> None:
        super().__init__(
            backbone,
            likelihood,
            parts=read_factors(factors),
            granularity=Granularity.GLOBAL,
            prior=LogUniform() if prior is None else prior,
            num_data=num_data,
            grouped=False,
            **options,
        )
        self.factors = factors

    def config(self) -> dict[str, Any]:
        own = {name: value for name, value in super().config().items() if name != "grouped"}
        return own | {"num_data": self.num_data, "factors": self.factors}
