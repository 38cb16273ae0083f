"""The compared methods. Each has one knob, four values of it that were tried, and the value that was chosen.

The choice is by the NLL on dev utterances of a run with a seed that the comparison does not use; see
:mod:`examples.studies.few_labels.tuning`. So every method has the same budget. The four values were moved where the
best lay at an end, until p = 0.95 and a KL weight of 300. A KL weight of 1 is the ELBO. LoRA, which is trained as all
others are, the ensemble of it and ``frozen``, a head alone, have none: they are what the regime is about. ``map`` is
LoRA with the knob that a user would turn, its weight decay. ``blob-elbo`` and ``tfb-default`` have the value that one
has without a search.

Of every method the run also keeps what one temperature, fitted on the dev utterances, makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Categorical, systems
from bayes_adapters.adapters.installation import adapted_layers
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Delta, FullGaussian, LowRank, MeanField
from bayes_adapters.heads import BayesianLinear, Head, VariationalLastLayer
from bayes_adapters.heads.gaussian_process import GaussianProcessHead
from bayes_adapters.models import LoRA, LoRAXS, StochasticDown
from bayes_adapters.samplers import ivon
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.swag import Trajectory
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.training import fit
from bayes_adapters.training.inducing import initialise
from examples.studies.meld.data import SENTIMENTS
from examples.studies.meld.methods import METHODS as MELD
from examples.studies.meld.methods import Build, Built, Training

INDUCING = 32


@dataclass(frozen=True)
class Tuned:
    """A row of the comparison.

    Args:
        build: parts, value of the knob → one member.
        knob: what the value is.
        values: those that were tried; none where there is no knob.
        chosen: the value of the comparison.
        ensemble: whether several members are trained and their predictives averaged.
    """

    build: Callable[[Build, float], Built]
    knob: str = ""
    values: tuple[float, ...] = ()
    chosen: float = 0.0
    ensemble: bool = False


def _lora(parts: Build, _: float) -> Built:
    return MELD["lora"].build(parts)


def _frozen(parts: Build, _: float) -> Built:
    """A linear head on the backbone as it is: B stays 0."""
    built = MELD["lora"].build(parts)
    for layer in adapted_layers(built.model.backbone).values():
        layer.requires_grad_(False)
    return built


def _map(parts: Build, decay: float) -> Built:
    built = MELD["lora"].build(parts)
    return built._replace(training=replace(built.training, weight_decay=decay))


def _weighted(name: str, parts: Build, weight: float) -> Built:
    """A method of the larger comparison with this KL weight, without pruning."""
    built = MELD[name].build(parts)
    return built._replace(training=replace(built.training, kl_weight=weight, on_step=None))


def _dropout(name: str, parts: Build, rate: float) -> Built:
    model, guide = systems.build(
        name,
        parts.backbone,
        Categorical(len(SENTIMENTS)),
        num_data=parts.num_data,
        dropout=rate,
        **parts.options,
    )
    return Built(model, guide, Training())


def _tfb(parts: Build, tolerance: float) -> Built:
    """As in the paper the anchors are training utterances without their labels; the tolerance is of their entropy."""
    built = MELD["lora"].build(parts)

    def finish(
        model: Any, guide: AdapterGuide, batches: Iterable[Batch], _dev: Iterable[Batch]
    ) -> tuple[AdapterModel, AdapterGuide]:
        new, posterior, _ = bayesianise(model, guide, batches, tolerance=tolerance, seed=parts.seed)
        return new, posterior

    return built._replace(training=Training(finish=finish))


def _laplace(parts: Build, precision: float) -> Built:
    """A Gaussian over both factors of a trained LoRA, and outputs that are linear in them, a thousand draws of each."""
    built = MELD["lora"].build(parts)

    def finish(
        model: AdapterModel, guide: AdapterGuide, batches: Iterable[Batch], _dev: Iterable[Batch]
    ) -> tuple[AdapterModel, AdapterGuide]:
        new, posterior, _ = laplace(model, guide, batches, prior_precision=precision)
        return new, posterior

    return built._replace(training=Training(finish=finish, linearised="outputs", samples=1000))


def _swag(parts: Build, rate: float) -> Built:
    """Ten more epochs of SGD from a trained LoRA, whose weights are gathered twice per epoch from the third on."""
    built = MELD["lora"].build(parts)
    epoch = max(1, parts.steps // 25)

    def finish(
        model: AdapterModel, guide: AdapterGuide, batches: Iterable[Batch], _dev: Iterable[Batch]
    ) -> tuple[AdapterModel, AdapterGuide]:
        path = Trajectory(start=2 * epoch, every=max(1, epoch // 2), columns=10)
        fit(
            model,
            guide,
            batches,
            max_steps=max(20, 10 * epoch),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate, momentum=0.9),
            clip_norm=1.0,
            on_step=path,
            seed=parts.seed,
            progress=False,
        )
        return path.posterior(model, guide, num_data=parts.num_data)

    return built._replace(training=Training(finish=finish))


def _ivon(parts: Build, rate: float) -> Built:
    """BLoB's model and posterior, found by IVON."""
    model = StochasticDown(parts.backbone, Categorical(len(SENTIMENTS)), prior=parts.prior, **_shared(parts))
    guide = MeanField(
        model, init_scale=0.1
    )  # the curvature starts at 1 / (N σ²): at 0.01 steps are a hundred times shorter
    return Built(model, guide, Training(optimizer=lambda m, g: ivon(m, g, lr=rate, point_lr=2e-3)))


def _shared(parts: Build) -> dict[str, Any]:
    return parts.options | {"num_data": parts.num_data}


def _low_rank(parts: Build, weight: float) -> Built:
    """BLoB's model, whose posterior correlates all entries of all layers."""
    model = StochasticDown(parts.backbone, Categorical(len(SENTIMENTS)), prior=parts.prior, **_shared(parts))
    return Built(model, LowRank(model, init_scale=0.01), Training(kl_weight=weight))


def _full(parts: Build, weight: float) -> Built:
    """r² numbers per layer between frozen directions, with one dense covariance over all of them."""
    model = LoRAXS(parts.backbone, Categorical(len(SENTIMENTS)), prior=parts.prior, **_shared(parts))
    return Built(model, FullGaussian(model, over="all", init_scale=0.01), Training(kl_weight=weight))


def _head(head: Callable[[], Head], parts: Build, weight: float) -> Built:
    """Point adapters below a head with a posterior."""
    model = LoRA(
        parts.backbone,
        Categorical(len(SENTIMENTS)),
        head=head(),
        **_shared(parts),
    )
    start = initialise if isinstance(model.head, GaussianProcessHead) else None
    return Built(model, Delta(model), Training(kl_weight=weight, start=start))


METHODS: dict[str, Tuned] = {
    "frozen": Tuned(_frozen),
    "lora": Tuned(_lora),
    "map": Tuned(_map, "weight decay", (3.0, 10.0, 30.0, 100.0), 30.0),
    "ensemble": Tuned(_lora, ensemble=True),
    "mc-dropout": Tuned(partial(_dropout, "mc-dropout"), "p", (0.6, 0.8, 0.9, 0.95), 0.95),
    "bayeslora-2025": Tuned(partial(_dropout, "bayeslora-2025"), "p", (0.7, 0.8, 0.9, 0.95), 0.95),
    "blob": Tuned(partial(_weighted, "blob"), "KL weight", (300.0, 100.0, 30.0, 10.0), 300.0),
    "blob-elbo": Tuned(lambda parts, _: _weighted("blob", parts, 1.0)),
    "scalabl": Tuned(partial(_weighted, "scalabl"), "KL weight", (3000.0, 1000.0, 300.0, 100.0), 3000.0),
    "bayeslora-2026": Tuned(partial(_weighted, "bayeslora-2026"), "KL weight", (0.3, 0.1, 0.03, 0.01), 0.1),
    "c-lora": Tuned(partial(_weighted, "c-lora"), "KL weight", (0.1, 0.03, 0.01, 0.003), 0.01),
    "tfb": Tuned(_tfb, "tolerance", (0.2, 0.4, 0.8, 1.6), 0.8),
    "tfb-default": Tuned(lambda parts, _: _tfb(parts, 0.05)),
    "laplace": Tuned(_laplace, "prior precision", (0.1, 1.0, 10.0, 100.0), 1.0),
    "swag": Tuned(_swag, "learning rate of SGD", (0.03, 0.1, 0.3, 1.0), 0.3),
    "ivon": Tuned(_ivon, "learning rate", (0.01, 0.03, 0.1, 0.3), 0.01),
    "low-rank": Tuned(_low_rank, "KL weight", (300.0, 100.0, 30.0, 10.0), 300.0),
    "full": Tuned(_full, "KL weight", (100.0, 30.0, 10.0, 3.0), 100.0),
    "bayesian-linear": Tuned(partial(_head, BayesianLinear), "KL weight", (100.0, 30.0, 10.0, 3.0), 30.0),
    "vbll": Tuned(partial(_head, VariationalLastLayer), "KL weight", (100.0, 30.0, 10.0, 3.0), 30.0),
    "gp-head": Tuned(partial(_head, lambda: GaussianProcessHead(INDUCING)), "KL weight", (10.0, 3.0, 1.0, 0.3), 1.0),
}
"""Name → method: the order of the tables."""


def method(name: str) -> Tuned:
    """Return a method by name.

    Raises:
        ConfigError: it does not exist.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
