"""What must be the same for a run to be continued, as JSON in its checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.schedules import KLSchedule
from bayes_adapters.training import _checkpoint, _data, _optimizer
from bayes_adapters.training._settings import OnStep, Settings


def description(
    elbo: ELBO,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    data: Any,
    validation: Any,
    settings: Settings,
    on_step: OnStep | None,
) -> dict[str, Any]:
    """What must be the same for a run to be continued."""
    model, guide = elbo.model, elbo.guide
    shapes = {name: [str(p.dtype), list(p.shape)] for name, p in _optimizer.trainable(model, guide).items()}
    likelihood = {"class": type(model.likelihood).__qualname__} | model.likelihood.config()
    free = {"epochs", "max_steps", "patience", "directory", "checkpoint_every", "autocast", "log_every"}
    return {
        "model": {"class": type(model).__qualname__} | model.config(),
        "prior": model.prior.to_json(),
        "likelihood": likelihood,
        "guide": {"class": type(guide).__qualname__} | guide.config(),
        "parameters": shapes,
        "backbone": _checkpoint.fingerprint(model.backbone),
        "optimizer": _optimizer.describe(optimizer),
        "scheduler": None if scheduler is None else _scheduler(scheduler),
        "kl_weight": _schedule(elbo.kl_weight),
        "on_step": None if on_step is None else _name(on_step),
        "kl_mode": elbo.kl_mode.value,
        "num_particles": elbo.num_particles,
        "data": _data.describe(data),
        "validation": None if validation is None else _data.describe(validation),
        "autocast": str(settings.autocast),
        "settings": {name: value for name, value in vars(settings).items() if name not in free},
    }


def _name(value: KLSchedule | OnStep) -> str:
    if dataclasses.is_dataclass(value):
        return repr(value)
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _schedule(weight: KLSchedule) -> str | dict[str, float]:
    """A description of our own schedules, the values of somebody else's at steps that tell most apart."""
    name = _name(weight)
    if dataclasses.is_dataclass(weight):
        return name
    return {f"{name} at step {step}": float(weight(step)) for step in (0, 1, 10, 100, 1_000, 10_000)}


def _scheduler(scheduler: Any) -> dict[str, Any]:
    """The class of a learning-rate scheduler and what of its fresh state is plain numbers, such as its gamma."""
    plain = (bool, int, float, str)
    state = {k: v for k, v in scheduler.state_dict().items() if isinstance(v, plain)}
    return {"class": type(scheduler).__qualname__} | state
