"""How a published system was trained, as data, and the options of ``fit`` that say the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import nn

from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.schedules import Blundell, Constant, KLSchedule
from bayes_adapters.surgery.pruning import PruneSchedule
from bayes_adapters.training._optimizer import trainable


class Decay(StrEnum):
    """How the learning rate falls after the warm-up."""

    CONSTANT = "constant"
    """The learning rate does not fall."""
    LINEAR = "linear"
    """The learning rate falls linearly to 0 at the last step."""
    POLY = "poly"
    """``(1 − e/E)^0.9`` in epoch e of E, as in CoLA's code."""


class Unit(StrEnum):
    """What a recipe's KL weight w multiplies; ``fit`` weights the KL per datum, (1/B) Σ_b KL_local,b + KL_global/N."""

    DATUM = "datum"
    """The KL per datum: w = 1 is the ELBO."""
    WHOLE = "whole"
    """The whole KL of a posterior over weights, next to the mean nll of a batch, as in the codes of BLoB and BayesLoRA:
    fit's weight is w · N."""
    BATCH = "batch"
    """The KL of local cores summed over a batch and divided by the number of sites, as in C-LoRA's code: fit's weight
    is w · B / L."""


@dataclass(frozen=True)
class Rate:
    """Learning rate and weight decay of the parameters whose name matches a pattern."""

    lr: float
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Recipe:
    """The defaults a system was published with.

    Args:
        lr: peak learning rate of AdamW.
        weight_decay: of all parameters that ``rates`` does not name.
        rates: pattern of names as in ``model.head.*`` or ``guide.log_variance.*`` → :class:`Rate`; the first match
            wins.
        warmup: share of the steps in which the learning rate rises from 0.
        decay: see :class:`Decay`.
        decay_steps: steps that warm-up and decay are spread over; None means those of the run. C-LoRA stops before
            the end of its schedule.
        batch_size: examples per step.
        steps: optimiser steps, or …
        epochs: … passes over the data; one of the two is given.
        patience: epochs without a better value after which it was stopped; for ``fit`` with validation data.
        clip_norm: largest 2-norm of the gradient.
        kl_weight: w; see :class:`Unit`.
        kl_unit: what it multiplies.
        kl_mode: normalisation of local KLs.
        windowed: multiply w by Blundell's π over windows of :func:`window` steps.
        num_samples: posterior draws averaged at test.
        prune: options of :class:`bayes_adapters.surgery.pruning.PruneSchedule`; None prunes nothing.

    >>> from bayes_adapters.systems import SYSTEMS
    >>> recipe = SYSTEMS["blob"].training
    >>> recipe.batch_size, recipe.steps
    (4, 5000)
    """

    lr: float
    weight_decay: float = 0.0
    rates: Mapping[str, Rate] = field(default_factory=dict)
    warmup: float = 0.0
    decay: Decay = Decay.CONSTANT
    decay_steps: int | None = None
    batch_size: int = 4
    steps: int | None = None
    epochs: int | None = None
    patience: int | None = None
    clip_norm: float | None = None
    kl_weight: float = 0.0
    kl_unit: Unit = Unit.DATUM
    kl_mode: KLMode = KLMode.FULL
    windowed: bool = False
    num_samples: int = 1
    prune: Mapping[str, Any] | None = None

    def fit_options(
        self,
        model: AdapterModel,
        guide: AdapterGuide,
        *,
        num_data: int,
        batch_size: int | None = None,
        max_steps: int | None = None,
    ) -> dict[str, Any]:
        """Return keyword arguments of :func:`bayes_adapters.training.fit`: ``fit(model, guide, data, **options)``.

        ``patience`` is not among them, for it needs ``validation``: where there is some, pass it on yourself.

        Args:
            model: on the device it will be trained on.
            guide: made for it.
            num_data: N, examples that an epoch yields.
            batch_size: examples per step; None is the paper's.
            max_steps: a shorter or longer run, over which warm-up and decay are spread; None is the paper's.

        Raises:
            ConfigError: a number below 1, or more examples per batch than there are.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        for name, value in {"num_data": num_data, "batch_size": batch_size, "max_steps": max_steps}.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}.")
        if batch_size > num_data:
            raise ConfigError(
                f"There are {num_data} examples and {batch_size} in a batch. Pass the size of the training set as "
                "num_data, and a smaller batch_size."
            )
        epoch = -(-num_data // batch_size)
        steps = max_steps or self.steps or (self.epochs or 1) * epoch
        spread = max(steps, self.decay_steps or 0) if max_steps is None else steps
        options: dict[str, Any] = {
            "optimizer": self._optimizer(model, guide),
            "scheduler": partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=self._factor(spread, epoch)),
            "kl_weight": self._schedule(model, num_data, batch_size),
            "kl_mode": self.kl_mode,
            "clip_norm": self.clip_norm,
            "num_samples": self.num_samples,
            "max_steps": steps,
        }
        if self.prune is not None:
            options["on_step"] = PruneSchedule(**self.prune)
        return options

    def _optimizer(self, model: AdapterModel, guide: AdapterGuide) -> torch.optim.Optimizer:
        groups: dict[Rate, list[nn.Parameter]] = {}
        for name, parameter in trainable(model, guide).items():
            found = (rate for pattern, rate in self.rates.items() if fnmatchcase(name, pattern))
            groups.setdefault(next(found, Rate(self.lr, self.weight_decay)), []).append(parameter)
        if not groups:
            raise ConfigError("Neither model nor guide has a parameter with requires_grad=True: nothing to train.")
        settings = [{"params": p, "lr": rate.lr, "weight_decay": rate.weight_decay} for rate, p in groups.items()]
        return torch.optim.AdamW(settings)

    def _factor(self, steps: int, epoch: int) -> Callable[[int], float]:
        rise = self.warmup * steps

        def factor(step: int) -> float:
            if step + 1 <= rise:
                return (step + 1) / rise
            if self.decay is Decay.LINEAR:
                return max(0.0, (steps - step) / max(1.0, steps - rise))
            if self.decay is Decay.POLY:
                return (1.0 - min(step // epoch / -(-steps // epoch), 1.0)) ** 0.9
            return 1.0

        return factor

    def _schedule(self, model: AdapterModel, num_data: int, batch_size: int) -> KLSchedule:
        weight = self.kl_weight
        if self.kl_unit is Unit.WHOLE:
            weight *= num_data
        elif self.kl_unit is Unit.BATCH:
            weight *= batch_size / max(1, len(model.sites))
        return Blundell(window(num_data, batch_size), weight) if self.windowed else Constant(weight)


def window(num_data: int, batch_size: int) -> int:
    """Return ``M = int(100 · N^(π/8) / B)``, the steps of a window of the KL schedule of BLoB, C-LoRA and ScalaBL.

    Args:
        num_data: N, examples that an epoch yields.
        batch_size: B.

    >>> [window(n, 4) for n in (640, 2488, 9424)], window(512, 4)
    ([316, 538, 909], 289)
    """
    return max(1, int(100 * num_data ** (math.pi / 8) / batch_size))
