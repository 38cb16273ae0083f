"""Which tensors are trained, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.training._optimizer_checks import (
    require_exactly,
    require_optimizer,
    require_optimizer_or_function,
    require_some,
)

_FUSED = ("cpu", "cuda")
"""Types of devices with a fused AdamW."""
OptimizerLike = torch.optim.Optimizer | Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def trainable(model: AdapterModel, guide: AdapterGuide) -> dict[str, nn.Parameter]:
    """Name → parameter for everything ``fit`` changes, the names prefixed with ``model.`` and ``guide.``."""
    named = {f"model.{name}": p for name, p in model.trainable_parameters().items()}
    seen = set(map(id, named.values()))
    return named | {f"guide.{name}": p for name, p in guide.named_parameters() if p.requires_grad and id(p) not in seen}


def build(spec: OptimizerLike | None, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser ``spec`` stands for, after checking that it trains ``parameters`` and nothing else.

    Raises:
        ConfigError: nothing is trainable, or the optimiser holds foreign or frozen parameters, or lacks some.
    """
    require_some(parameters)
    if spec is None:
        return _adamw(list(parameters.values()))
    require_optimizer_or_function(spec)
    optimizer = spec if isinstance(spec, torch.optim.Optimizer) else spec(list(parameters.values()))
    require_optimizer(optimizer)
    require_exactly(optimizer, parameters)
    return optimizer


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW: one kernel for all tensors where torch has had one for long, four times as fast for a thousand of them."""
    fused = all(p.device.type in _FUSED for p in parameters)
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True if fused else None)
