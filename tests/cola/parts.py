"""A CoLA model over two small encoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bayes_adapters import Bernoulli, adapted_layers
from bayes_adapters.models import CoLA
from tests.text_and_audio import encoders


def cola(backbone: nn.ModuleDict | None = None, fill: bool = True, **options: Any) -> CoLA:
    model = CoLA(backbone or encoders(), Bernoulli(), **({"rank": 3, "alpha": 1.5} | options))
    if fill:
        torch.manual_seed(5)
        with torch.no_grad():
            for layer in adapted_layers(model.backbone).values():
                for up in {id(p): p for p in [layer.lora_B, *(path.lora_B for path in layer.inter.values())]}.values():
                    up.normal_(0.0, 0.3)
    return model
