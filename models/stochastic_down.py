"""LoRA with a random A: the model of BLoB and of training-free Bayesianization."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.priors import PriorLike
from bayes_adapters.sites import Granularity, Part


class StochasticDown(AdapterModel):
    """``h = W₀ x + (α/r) B A x``, ``A ~ prior``, B deterministic and zero at the start.

    With a Gaussian A and a deterministic B the update has a Gaussian of covariance ``(I ⊗ B) diag(σ²) (I ⊗ Bᵀ)``.

    Source: BLoB, arXiv 2406.11675 (prior N(0, 0.2²)).

    Args:
        backbone: see :class:`AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        num_data: N, the size of the data set.
        prior: of A, see :mod:`bayes_adapters.priors`; None means N(0, 0.2²).
        flipout: decorrelate the examples of a training batch, see
            :class:`~bayes_adapters.adapters.reparametrisation.Flipout`.
        **options: further options of :class:`AdapterModel`.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> [(site.name, site.shape) for site in model.sites]
    [('A.global', (2, 2, 8))]
    """

    structure: ClassVar[str] = "stochastic_down"

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        num_data: int,
        prior: PriorLike | None = None,
        flipout: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            backbone,
            likelihood,
            parts=[Part.A],
            granularity=Granularity.GLOBAL,
            prior=prior,
            num_data=num_data,
            flipout=flipout,
            **options,
        )

    def config(self) -> dict[str, Any]:
        return super().config() | {"num_data": self.num_data, "flipout": self.flipout}
