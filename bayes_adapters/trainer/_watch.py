"""What a Trainer is told while it trains, and what is gathered for its log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from bayes_adapters.data.batch import Batch
from bayes_adapters.data.scales import warn_of_scales
from bayes_adapters.training._data_checks import require_context


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
    """Tell a :class:`~bayes_adapters.trainer.BayesTrainer` which epoch begins; refuse a forgotten context."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.modes: list[tuple[nn.Module, bool]] = []
        self.missing: set[str] = set()  # modalities that are read, and that no batch of the epoch has had

    def saw(self, batch: Batch, step: int) -> None:
        """Look at a batch of training: a modality that no batch has was forgotten; scales far from 1 are warned of."""
        self.missing -= set(batch.context)
        if step == 0 and batch.targets is not None:
            elbo = self.trainer.elbo
            advice = elbo.model.likelihood.advice(batch.targets)
            warn_of_scales(batch, advice, elbo.model.reads | elbo.guide.reads)

    @contextmanager
    def modes_back(self) -> Iterator[None]:
        """After the context each module has the mode that it had when the training in it began."""
        self.modes = []
        try:
            yield
        finally:
            for module, training in self.modes:
                module.training = training

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.modes = [(module, module.training) for module in self.trainer.elbo.modules()]

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        elbo = self.trainer.elbo
        whole = self.trainer.begin_epoch(state.global_step)
        self.missing = set(elbo.model.reads | elbo.guide.reads) if whole else set()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        require_context(self.missing)
