"""LoRA with a gate on each rank: the model of a spike-and-slab prior over ranks."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters.adapters.installation import restored_on_error
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models._gate_checks import check_gates, check_keep
from bayes_adapters.priors import PriorLike
from bayes_adapters.sites import Granularity, Part


class GatedLoRA(AdapterModel):
    """``h = W₀ x + (α/r) B diag(g) A x``, ``g_i ~ Bernoulli(π)``: each rank is there, or is not.

    The i-th column of the update is ``g_i b_i a_iᵀ``: 0 (spike), or learned without a prior (slab). A gate is one draw
    for the whole data set, and a draw that is 0 takes its rank out of the model. The guide is
    :class:`bayes_adapters.guides.RankGates`, which learns how probable each rank is.

    Args:
        backbone: see :class:`AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        num_data: N, the size of the data set.
        keep: π, in (0, 1); smaller values want fewer ranks, by ``log(π / (1 − π)) / N`` nats per datum and rank.
        prior: Bernoulli gates of other probabilities, by site; None means ``keep`` everywhere.
        **options: further options of :class:`AdapterModel`.

    Raises:
        ConfigError: ``keep`` out of range, or a prior of gates that is no Bernoulli in (0, 1).

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = GatedLoRA(BertModel(tiny), Bernoulli(), num_data=100, keep=0.25, rank=4)
    >>> [(site.name, site.shape) for site in model.sites], model.prior.of(model.sites[0]).mean[0]
    ([('gate.global', (2, 4))], tensor([0.2500, 0.2500, 0.2500, 0.2500]))
    """

    structure: ClassVar[str] = "gated_lora"

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        num_data: int,
        keep: float = 0.5,
        prior: PriorLike | None = None,
        **options: Any,
    ) -> None:
        check_keep(keep)
        self.keep = keep
        with restored_on_error(backbone):
            super().__init__(
                backbone,
                likelihood,
                parts=[Part.GATE],
                granularity=Granularity.GLOBAL,
                prior=dist.Bernoulli(probs=torch.tensor(float(keep))) if prior is None else prior,
                num_data=num_data,
                **options,
            )
            check_gates(self)

    def config(self) -> dict[str, Any]:
        return super().config() | {"keep": self.keep, "num_data": self.num_data}
