"""What a Trainer is told while it trains, and what is gathered for its log."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from bayes_adapters.training import _step_checks
from bayes_adapters.training._optimizer import trainable


@dataclass
class Window:
    """Sums over the steps since the last log.

    Args:
        steps: how many.
        weights: Σ w.
        sums: nll and kl of this process's examples, shape (2,).
    """

    steps: int = 0
    weights: float = 0.0
    sums: Any = 0.0

    def begin(self, weight: float) -> None:
        """Begin a step at KL weight ``weight``."""
        self.steps += 1
        self.weights += float(weight)

    def add(self, share: float, nll: Tensor, kl: Tensor) -> None:
        """Add a micro-batch that is ``share`` of its step."""
        self.sums = self.sums + share * torch.stack([nll.detach(), kl.detach()])

    def averages(self, sums: Tensor) -> dict[str, float]:
        """Return what the log says, ``sums`` being those of all processes."""
        nll, kl = (sums / self.steps).tolist()
        return {"nll": nll, "kl": kl, "kl_weight": self.weights / self.steps}


class Watch(TrainerCallback):  # type: ignore[misc]
    """Tell a :class:`~bayes_adapters.trainer.BayesTrainer` which epoch begins; refuse gradients that are not finite."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.begin_epoch(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        elbo = self.trainer.elbo
        parameters = trainable(elbo.model, elbo.guide)
        norm = float(_step_checks.gradient_norm(parameters))
        if not math.isfinite(norm):
            _step_checks.check_finite(state.global_step, {"grad_norm": norm}, parameters)
