"""The compared methods, on the same layers, rank and steps; each with the values that its paper or the ELBO says.

Nothing was searched. ``blob`` has the ELBO's KL weight, 1; ``c-lora``, whose latents have a KL for each token, that of
the studies of sentiment, .01, and both the prior N(0, .2²). ``mc-dropout`` has its paper's p, .1. ``frozen`` is the
language model as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, systems
from bayes_adapters.backbones.language_models import vocabulary_size
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken

TARGETS = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Args:
        system: of :mod:`bayes_adapters.systems`.
        prior: whether its random weights or cores have the prior N(0, .2²).
        kl_weight: of ``fit``.
        random: whether its draws differ.
        ensemble: whether several are trained, and averaged.
        trained: whether anything is.
    """

    system: str = "lora"
    prior: bool = False
    kl_weight: float = 1.0
    random: bool = True
    ensemble: bool = False
    trained: bool = True


METHODS: dict[str, Method] = {
    "frozen": Method(random=False, trained=False),
    "lora": Method(random=False),
    "ensemble": Method(ensemble=True),
    "mc-dropout": Method("mc-dropout"),
    "blob": Method("blob", prior=True),
    "c-lora": Method("c-lora", prior=True, kl_weight=0.01),
}
"""Name → method: the order of the tables."""


def build(
    method: Method, top: nn.Module, *, num_data: int, rank: int, alpha: float
) -> tuple[AdapterModel, AdapterGuide]:
    """Build one member on the upper layers of a language model, query and value of each.

    Logits of all tokens of a batch are kept for the way back, which is faster than computing them twice.
    """
    options: dict[str, Any] = {"rank": rank, "alpha": alpha, "targets": list(TARGETS)}
    if method.prior:
        options["prior"] = dist.Normal(torch.tensor(0.0), torch.tensor(0.2))
    head = LanguageModelHead(recompute=False)
    likelihood = NextToken(vocabulary_size(top))
    return systems.build(method.system, top, likelihood, num_data=num_data, head=head, **options)
