"""What must be the same for a run to be continued, as JSON in its checkpoint."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import nn

from bayes_adapters.files._backbone import content
from bayes_adapters.inference.elbo import ELBO
from bayes_adapters.schedules import KLSchedule
from bayes_adapters.training import _data, _optimizer
from bayes_adapters.training._checkpoint import raw
from bayes_adapters.training._settings import OnStep, Settings

_SAME = ("clip_norm", "accumulate", "num_samples", "monitor", "maximise", "seed")
"""Settings that a continued run must share; the others say how long it is, and where and how it is shown."""


def description(
    elbo: ELBO,
    optimizer: torch.optim.Optimizer,
    scheduler: Any,
    data: Any,
    validation: Any,
    settings: Settings,
) -> dict[str, Any]:
    """Describe a run that has not begun."""
    model, guide, on_step = elbo.model, elbo.guide, settings.on_step
    keyed = {} if elbo.seed is None else {"noise": "of steps, in a process group"}
    return keyed | {
        "model": {"class": type(model).__qualname__} | model.config(),
        "prior": model.prior.to_json(),
        "likelihood": {"class": type(model.likelihood).__qualname__} | model.likelihood.config(),
        "guide": {"class": type(guide).__qualname__} | guide.config(),
        "parameters": {n: [str(p.dtype), list(p.shape)] for n, p in _optimizer.trainable(model, guide).items()},
        "backbone": sampled(model.backbone),
        "backbone_sha256": content(model.backbone, trained=False),
        "optimizer": _optimizer_options(optimizer),
        "scheduler": None if scheduler is None else _scheduler(scheduler),
        "kl_weight": _schedule(elbo.kl_weight),
        "on_step": None if on_step is None else _name(on_step),
        "kl_mode": elbo.kl_mode.value,
        "num_particles": elbo.num_particles,
        "data": _data.describe(data),
        "validation": None if validation is None else _data.describe(validation),
        "autocast": str(settings.autocast),
        "settings": {name: getattr(settings, name) for name in _SAME},
    }


def sampled(module: nn.Module) -> str:
    """Return a hash of up to 64 entries of each frozen tensor: all that older checkpoints know of their backbone."""
    hasher = hashlib.sha256()
    for name, p in module.named_parameters():
        if not p.requires_grad:
            flat = p.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 64)][:64].cpu().contiguous()
            hasher.update(f"{name}:{tuple(p.shape)}:{p.dtype}".encode() + raw(sample))
    return hasher.hexdigest()[:16]


def _optimizer_options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = optimizer.param_groups
    fixed = [name for name in optimizer.defaults if name != "lr"]
    return {
        "class": type(optimizer).__qualname__,
        "defaults": {name: repr(value) for name, value in optimizer.defaults.items()},
        "groups": [len(group["params"]) for group in groups],
        "options": {str(i): {name: repr(group.get(name)) for name in fixed} for i, group in enumerate(groups)},
        "lr": [float(group.get("initial_lr", group["lr"])) for group in groups],
    }


def _scheduler(scheduler: Any) -> dict[str, Any]:
    """The class of a learning-rate scheduler and what of its fresh state is plain numbers, such as its gamma."""
    state = {k: v for k, v in scheduler.state_dict().items() if isinstance(v, bool | int | float | str)}
    return {"class": type(scheduler).__qualname__} | state


def _schedule(weight: KLSchedule) -> str | dict[str, float]:
    """A description of our own schedules, the values of somebody else's at steps that tell most apart."""
    name = _name(weight)
    if dataclasses.is_dataclass(weight):
        return name
    return {f"{name} at step {step}": float(weight(step)) for step in (0, 1, 10, 100, 1_000, 10_000)}


def _name(value: KLSchedule | OnStep) -> str:
    return repr(value) if dataclasses.is_dataclass(value) else getattr(value, "__qualname__", type(value).__qualname__)
