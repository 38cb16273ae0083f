"""Which tensors are trained, and by what."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.training import _checks

_FUSED = ("cpu", "cuda")
"""Types of devices with a fused AdamW: one kernel for all tensors, four times as fast for a thousand of them."""
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
    _checks.check_parameters(parameters)
    own = list(parameters.values())
    if spec is None:
        fused = all(p.device.type in _FUSED for p in own)
        return torch.optim.AdamW(own, lr=1e-3, fused=True if fused else None)
    optimizer = spec(own) if callable(spec) and not isinstance(spec, torch.optim.Optimizer) else spec
    _checks.check_optimizer(optimizer, parameters)
    return optimizer
