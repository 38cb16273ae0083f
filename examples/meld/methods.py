"""The compared methods: each a model, a guide and how to train them, on the same backbone, layers, rank and head.

To add one (``mc-dropout``, ``blob``, ``scalabl``, ``tfb``, ``bayeslora-2025``, ``bayeslora-2026``): write a function
``Build -> Built`` beside those below, and one line in :data:`METHODS`. What is not the same for all methods goes into
its :class:`Training`: the weight of its KL, its learning rate, what is done after training, how ranks are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Categorical
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Contextual, Delta
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.schedules import KLSchedule
from examples.meld.data import SENTIMENTS

Finish = Callable[[AdapterModel, AdapterGuide, Iterable[Batch], Iterable[Batch]], tuple[AdapterModel, AdapterGuide]]
"""What is done after training: (model, guide, training batches, dev batches) → the model and guide to predict with."""


@dataclass(frozen=True)
class Build:
    """What a method is built from.

    Args:
        backbone: the frozen text encoder, a fresh one for each member; changed in place.
        num_data: N, the number of training utterances (global posteriors have one KL per N).
        steps: optimiser steps that training takes, for schedules.
        rank: r.
        alpha: the adapters' scale is alpha / rank.
        prior_scale: β of the prior N(0, β²) on token cores.
        kl_weight: weight of the KL per nat of those methods that are tempered (1 is the ELBO).
    """

    backbone: nn.Module
    num_data: int
    steps: int
    rank: int = 8
    alpha: float = 16.0
    prior_scale: float = 0.2
    kl_weight: float = 1e-4


@dataclass(frozen=True)
class Training:
    """How one method is trained and used.

    Args:
        random: whether predictions differ from draw to draw; otherwise one pass is all there is to average.
        kl_weight: a number or a schedule, for ``fit``.
        lr: peak learning rate; None is the one of the settings.
        num_particles: draws per loss.
        finish: what is done after training, if anything.
        ranks_kept: model, guide → mean number of ranks in use in a layer; None means all.
    """

    random: bool = True
    kl_weight: float | KLSchedule = 1.0
    lr: float | None = None
    num_particles: int = 1
    finish: Finish | None = None
    ranks_kept: Callable[[AdapterModel, AdapterGuide], float] | None = None


class Built(NamedTuple):
    """One member of a method, ready for training."""

    model: AdapterModel
    guide: AdapterGuide
    training: Training


@dataclass(frozen=True)
class Method:
    """A row of the comparison.

    Args:
        build: makes one member.
        ensemble: whether several members, each with its own initialisation and order, are trained and their
            predictives averaged (deep ensemble; Lakshminarayanan et al. 2017, arXiv 1612.01474).
    """

    build: Callable[[Build], Built]
    ensemble: bool = False


def _lora(parts: Build) -> Built:
    model = LoRA(parts.backbone, Categorical(len(SENTIMENTS)), rank=parts.rank, alpha=parts.alpha)
    return Built(model, Delta(model), Training(random=False))


def _c_lora(parts: Build) -> Built:
    prior = dist.Normal(torch.tensor(0.0), torch.tensor(parts.prior_scale))
    model = StochasticCore(
        parts.backbone, Categorical(len(SENTIMENTS)), rank=parts.rank, alpha=parts.alpha, prior=prior
    )
    return Built(model, Contextual(model), Training(kl_weight=parts.kl_weight))


METHODS: dict[str, Method] = {
    "lora": Method(_lora),
    "ensemble": Method(_lora, ensemble=True),
    "c-lora": Method(_c_lora),
}
"""Name → method: the order of the tables."""


def method(name: str) -> Method:
    """Return a method by name.

    Raises:
        ConfigError: it does not exist.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
