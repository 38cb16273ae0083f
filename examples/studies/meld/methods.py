"""The compared methods: each a model, a guide and how to train them, on the same backbone, layers, rank and head.

To add one, write a function ``Build -> Built`` beside those below, and one line in :data:`METHODS`. What is not the
same for all methods goes into its :class:`Training`: the weight of its KL, its learning rate, what is done in and after
training, how ranks are counted.

Published systems come from :mod:`bayes_adapters.systems` with the rank, scale and layers of this comparison in the
place of their own. So ``bayeslora-2025`` (p = 0.15) differs from ``mc-dropout`` (p = 0.1) in p only: in both, every
token has a mask of its own.

``lora-r12`` and ``lora-r20`` (at the default rank 8) train as many numbers as BLoB, and about as many as C-LoRA.
Dropout, TFB, ScalaBL and BayesLoRA (2026) train as many as ``lora``, within 1 %. ``bayeslora-2026-pruned`` is
``bayeslora-2026`` with a KL weight that takes ranks out; ``lora-r5`` has about as many from the start, the same
number in every layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Categorical, systems
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Contextual, Delta
from bayes_adapters.heads import Head
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.schedules import KLSchedule
from bayes_adapters.surgery.pruning import PruneSchedule
from bayes_adapters.surgery.training_free import bayesianise
from examples.studies.meld.data import SENTIMENTS

Finish = Callable[[AdapterModel, AdapterGuide, Iterable[Batch], Iterable[Batch]], tuple[AdapterModel, AdapterGuide]]
"""What is done after training: (model, guide, training batches, dev batches) → the model and guide to predict with."""

Optimiser = Callable[[AdapterModel, AdapterGuide], torch.optim.Optimizer]
"""Model, guide → an optimiser of their parameters."""

Start = Callable[[AdapterModel, AdapterGuide, Iterable[Batch]], None]
"""What is done before training: (model, guide, training batches)."""

OnStep = Callable[[int, AdapterModel, AdapterGuide, torch.optim.Optimizer], None]
"""What is done after each optimiser step; see ``fit``."""

PRUNED = "bayeslora-2026-pruned"
"""BayesLoRA (2026) with as few ranks as keep LoRA's accuracy on dev utterances."""

KL_WEIGHTS = {"blob": 1e-3, "scalabl": 1e-3, "bayeslora-2026": 1e-3, PRUNED: 2e-2}
"""Weight w of the KL of a posterior over weights: a step minimises nll + w · KL / N, and w = 1 is the ELBO.

Chosen among 1, 0.1, 0.01 and 0.001 on dev utterances only, see :mod:`examples.studies.meld.kl_weights`; that of
:data:`PRUNED` by :mod:`examples.studies.meld.fewest_ranks`.
"""

PRUNE_THRESHOLD = 4.0
"""Score from which ``bayeslora-2026`` takes a rank out, that of its code on GLUE; a fresh adapter scores about 3.6."""


@dataclass(frozen=True)
class Build:
    """What a method is built from.

    Args:
        backbone: the frozen text encoder, a fresh one for each member; changed in place.
        num_data: N, the number of training utterances (global posteriors have one KL per N).
        steps: optimiser steps that training takes, for schedules.
        rank: r.
        alpha: the adapters' scale is alpha / rank.
        prior_scale: β of the prior N(0, β²) on token cores and on BLoB's A.
        kl_weight: weight of the KL per nat of methods with a posterior over token cores (1 is the ELBO); those with
            one over weights have their own in :data:`KL_WEIGHTS`.
        seed: of this member, for draws that are made after training.
        targets: suffixes of the layers to adapt.
        head: makes the head; None is the model's own, linear.
    """

    backbone: nn.Module
    num_data: int
    steps: int
    rank: int = 8
    alpha: float = 16.0
    prior_scale: float = 0.2
    kl_weight: float = 1e-4
    seed: int = 0
    targets: Sequence[str] = ("query", "value")
    head: Callable[[], Head] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What every model of the comparison is built with."""
        head = {} if self.head is None else {"head": self.head()}
        return {"rank": self.rank, "alpha": self.alpha, "targets": self.targets, **head}

    @property
    def prior(self) -> dist.Normal:
        """N(0, β²)."""
        return dist.Normal(torch.tensor(0.0), torch.tensor(self.prior_scale))


@dataclass(frozen=True)
class Training:
    """How one method is trained and used.

    Args:
        random: whether predictions differ from draw to draw; otherwise one pass is all there is to average.
        kl_weight: a number or a schedule, for ``fit``.
        lr: peak learning rate; None is the one of the settings.
        weight_decay: of AdamW, torch's own by default.
        optimizer: another optimiser, with rates of its own; None is AdamW.
        num_particles: draws per loss.
        start: what is done before training, if anything, with the training batches.
        on_step: what is done after each optimiser step, if anything, such as pruning.
        finish: what is done after training, if anything.
        linearised: whether, and how, predictions are those of the outputs linearised in the weights; see ``predict``.
        samples: posterior draws of a prediction after training; None takes those of the settings.
        ranks_kept: model, guide → mean number of ranks in use in a layer; None means all.
    """

    random: bool = True
    kl_weight: float | KLSchedule = 1.0
    lr: float | None = None
    weight_decay: float = 0.01
    optimizer: Optimiser | None = None
    num_particles: int = 1
    start: Start | None = None
    on_step: OnStep | None = None
    finish: Finish | None = None
    linearised: bool | str = False
    samples: int | None = None
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


def _lora(parts: Build, times: float = 1.0) -> Built:
    """A LoRA of ``times`` the rank, and the same alpha."""
    rank = round(times * parts.rank)
    model = LoRA(parts.backbone, Categorical(len(SENTIMENTS)), **parts.options | {"rank": rank})
    return Built(model, Delta(model), Training(random=False))


def _c_lora(parts: Build) -> Built:
    model = StochasticCore(parts.backbone, Categorical(len(SENTIMENTS)), prior=parts.prior, **parts.options)
    return Built(model, Contextual(model), Training(kl_weight=parts.kl_weight))


def _system(name: str, parts: Build, **options: Any) -> tuple[AdapterModel, AdapterGuide]:
    """Build a published system with this comparison's rank, scale and layers in the place of its own."""
    likelihood = Categorical(len(SENTIMENTS))
    return systems.build(name, parts.backbone, likelihood, num_data=parts.num_data, **parts.options, **options)


def _dropout(name: str, parts: Build) -> Built:
    return Built(*_system(name, parts), Training())


def _blob(parts: Build) -> Built:
    return Built(*_system("blob", parts, prior=parts.prior), Training(kl_weight=KL_WEIGHTS["blob"]))


def _scalabl(parts: Build) -> Built:
    return Built(*_system("scalabl", parts), Training(kl_weight=KL_WEIGHTS["scalabl"]))


def _bayeslora_2026(parts: Build, name: str = "bayeslora-2026") -> Built:
    half = max(1, parts.steps // 2)
    # One look, half-way: an epoch that ends before a removal cannot be chosen any more.
    prune = PruneSchedule(PRUNE_THRESHOLD, start=half, until=half, min_rank=1)
    training = Training(kl_weight=KL_WEIGHTS[name], on_step=prune, ranks_kept=_mean_rank)
    return Built(*_system("bayeslora-2026", parts), training)


def _mean_rank(model: AdapterModel, _guide: AdapterGuide) -> float:
    return sum(model.ranks.values()) / len(model.ranks)


def _tfb(parts: Build) -> Built:
    model, guide, _ = _lora(parts)
    return Built(model, guide, Training(finish=partial(_training_free, seed=parts.seed)))


def _training_free(
    model: AdapterModel, guide: AdapterGuide, _batches: Iterable[Batch], dev: Iterable[Batch], *, seed: int
) -> tuple[AdapterModel, AdapterGuide]:
    """Put noise around a trained LoRA, as much as its own answers on the dev utterances allow (labels are not read)."""
    new, posterior, _ = bayesianise(model, guide, dev, relative_to="loss", seed=seed)  # type: ignore[arg-type]
    return new, posterior


METHODS: dict[str, Method] = {
    "lora": Method(_lora),
    "lora-r5": Method(partial(_lora, times=0.625)),
    "lora-r12": Method(partial(_lora, times=1.5)),
    "lora-r20": Method(partial(_lora, times=2.5)),
    "ensemble": Method(_lora, ensemble=True),
    "mc-dropout": Method(partial(_dropout, "mc-dropout")),
    "bayeslora-2025": Method(partial(_dropout, "bayeslora-2025")),
    "blob": Method(_blob),
    "tfb": Method(_tfb),
    "scalabl": Method(_scalabl),
    "bayeslora-2026": Method(_bayeslora_2026),
    PRUNED: Method(partial(_bayeslora_2026, name=PRUNED)),
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
