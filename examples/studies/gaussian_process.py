"""How the studies train a Gaussian-process head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bayes_adapters import AdapterGuide, AdapterModel
from bayes_adapters.systems import Rate, Recipe

RATE = 0.02
"""Learning rate of kernel, inducing points and q(u). The rate of adapters, a tenth of it, leaves q(u) at its prior."""


def process_rates(lr: float) -> Callable[[AdapterModel, AdapterGuide], Callable[[Any], torch.optim.Optimizer]]:
    """Return a maker of AdamW: ``lr`` for everything but the process, which has :data:`RATE`."""
    rates = dict.fromkeys(("model.head.*", "guide.head_posterior.*"), Rate(RATE))
    recipe = Recipe(lr=lr, rates=rates)

    def made(model: AdapterModel, guide: AdapterGuide) -> Callable[[Any], torch.optim.Optimizer]:
        optimizer = recipe.fit_options(model, guide, num_data=4)["optimizer"]
        return lambda _: optimizer

    return made
