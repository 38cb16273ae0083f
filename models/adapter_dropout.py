"""LoRA whose adapters' inputs are randomly masked: the model of BayesLoRA (June 2025)."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters.adapters.installation import restored_on_error
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models._checks import check_drop, check_masks
from bayes_adapters.priors import PriorLike
from bayes_adapters.sites import Granularity, Part


class AdapterDropout(AdapterModel):
    """``h = W₀ x + (α/r) B A (m ⊙ x) / (1 − p)``, ``m_i ~ Bernoulli(1 − p)``.

    Source: BayesLoRA, arXiv 2506.22809 v1, and its released notebooks (p = 0.15, r = 64).

    Args:
        backbone: see :class:`AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        drop: p, in (0, 1).
        granularity: ``"token"``: independent masks, as the paper; ``"sequence"``: one mask per example; ``"global"``:
            one mask per draw, so that a draw is one function of all inputs.
        prior: Bernoulli keep masks of other probabilities above 0, by site; None means ``drop`` everywhere.
        **options: further options of :class:`AdapterModel`.

    Raises:
        ConfigError: ``drop`` out of range, or a prior whose mean, by which what is kept is divided, is not positive.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = AdapterDropout(BertModel(tiny), Bernoulli(), drop=0.25, granularity="global", rank=2)
    >>> [(site.name, site.shape) for site in model.sites], model.prior.of(model.sites[0]).mean[0, :2]
    ([('mask.global', (2, 8))], tensor([0.7500, 0.7500]))
    """

    structure: ClassVar[str] = "adapter_dropout"

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        drop: float = 0.15,
        granularity: Granularity | str = Granularity.TOKEN,
        prior: PriorLike | None = None,
        **options: Any,
    ) -> None:
        check_drop(drop)
        self.drop = drop
        with restored_on_error(backbone):
            super().__init__(
                backbone,
                likelihood,
                parts=[Part.MASK],
                granularity=granularity,
                prior=dist.Bernoulli(probs=torch.tensor(1.0 - drop)) if prior is None else prior,
                **options,
            )
            check_masks(self)

    def config(self) -> dict[str, Any]:
        return super().config() | {"drop": self.drop, "granularity": self.granularity}
