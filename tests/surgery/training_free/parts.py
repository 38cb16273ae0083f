"""A LoRA with weights as after training, what is made of it, and draws of its weights."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor, nn

from bayes_adapters import Batch, Bernoulli, adapted_layers
from bayes_adapters.guides import Delta, TrainingFree
from bayes_adapters.models import LoRA
from bayes_adapters.surgery.training_free import bayesianise
from tests.helpers import bert, fill_B, token_batch

RANK = 3


def lora(backbone: nn.Module | None = None, likelihood: Any = None, **options: Any) -> LoRA:
    settings = {"rank": RANK, "dropout": 0.1} | options
    model = fill_B(LoRA(backbone or bert(), likelihood or Bernoulli(), **settings))
    with torch.no_grad():
        model.head.weight.mul_(6)
    return model  # type: ignore[return-value]


def batch(size: int = 24, classes: int = 2) -> Batch:
    targets = torch.arange(size) % classes
    return token_batch(size, targets=targets.float() if classes == 2 else targets)


def make(model: LoRA, **options: Any) -> Any:
    settings = {"relative_to": "loss", "tolerance": 0.02, "num_samples": 4, "iterations": 4}
    return bayesianise(model, Delta(model), batch(), **settings | options)


def draws(guide: TrainingFree, count: int) -> dict[str, Tensor]:
    """Path → ΔW = B'A' before the scale, shape (count, d_out, d_in)."""
    with torch.no_grad(), pyro.plate("samples", count, dim=-2):
        guide(token_batch(1))
    found: dict[str, Tensor] = {}
    for site in guide.model.sites:
        values = guide.trace.nodes[site.name]["value"].reshape(count, *site.shape)
        for place, path in enumerate(site.layers):
            found[path] = adapted_layers(guide.model.backbone)[path].lora_B.detach() @ values[:, place]
    return found


def products(model: LoRA) -> dict[str, Tensor]:
    return {p: (la.lora_B @ la.lora_A).detach() for p, la in adapted_layers(model.backbone).items()}
