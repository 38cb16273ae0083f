"""What ``fit`` refuses as an optimiser."""

from __future__ import annotations

from collections.abc import Mapping, Sized

import torch
from torch import nn

from bayes_adapters.errors import ConfigError


def require_some(parameters: Sized) -> None:
    """Raise :class:`ConfigError` if nothing is trainable."""
    if not parameters:
        raise ConfigError("Neither model nor guide has a parameter with requires_grad=True: there is nothing to train.")


def require_optimizer_or_function(spec: object) -> None:
    """Raise :class:`ConfigError` unless ``spec`` is an optimiser or can be called."""
    if not isinstance(spec, torch.optim.Optimizer) and not callable(spec):
        raise ConfigError(
            f"optimizer must be a torch.optim.Optimizer or a function parameters → Optimizer; got {spec!r}. Example: "
            "optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)."
        )


def require_optimizer(returned: object) -> None:
    """Raise :class:`ConfigError` unless what a function ``returned`` is an optimiser."""
    if not isinstance(returned, torch.optim.Optimizer):
        raise ConfigError(
            f"optimizer must be a torch.optim.Optimizer or a function parameters → Optimizer; it returned "
            f"{type(returned).__name__}. Example: optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)."
        )


def require_exactly(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raise :class:`ConfigError` unless the optimiser trains all of ``parameters`` and nothing else."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    lacking = [name for name, p in parameters.items() if id(p) not in held]
    if lacking:
        raise ConfigError(
            f"The optimizer lacks {len(lacking)} trainable parameters: {_some(lacking)}. Add them, or freeze them with "
            "requires_grad_(False). Was the optimizer made before the guide, or for another model?"
        )
    foreign = len(held - {id(p) for p in parameters.values()})
    if foreign:
        raise ConfigError(
            f"The optimizer holds {foreign} tensors that are not trainable parameters of this model and guide (frozen, "
            "or of another model). Build it from model.trainable_parameters().values() and guide.parameters()."
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (" …" if len(names) > 4 else "")
