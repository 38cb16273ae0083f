"""A CoLA model over small encoders, and a batch for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters import Batch, Bernoulli, adapted_layers
from bayes_adapters.models import CoLA
from tests.helpers import bert, whisper

FRAMES = 10


def encoders(text: int = 2, audio: int = 2) -> nn.ModuleDict:
    return nn.ModuleDict({"text": bert(text), "audio": whisper(audio)})


def batch(size: int = 4, seed: int = 0, **more: Tensor) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, 7, dtype=torch.long)
    mask[1, 3:] = 0
    inputs = {
        "text.input_ids": torch.randint(0, 40, (size, 7), generator=rng),
        "text.attention_mask": mask,
        "audio.input_features": torch.randn(size, 8, 2 * FRAMES, generator=rng),
    }
    return Batch(inputs | more, torch.randint(0, 2, (size,), generator=rng).float())


def cola(backbone: nn.ModuleDict | None = None, fill: bool = True, **options: Any) -> CoLA:
    model = CoLA(backbone or encoders(), Bernoulli(), **({"rank": 3, "alpha": 1.5} | options))
    if fill:
        torch.manual_seed(5)
        with torch.no_grad():
            for layer in adapted_layers(model.backbone).values():
                for up in {id(p): p for p in [layer.lora_B, *(path.lora_B for path in layer.inter.values())]}.values():
                    up.normal_(0.0, 0.3)
    return model


def logits(model: CoLA, guide: Any, data: Batch) -> Tensor:
    with torch.no_grad():
        guide(data)
    return guide.trace.nodes["obs"]["fn"].logits
