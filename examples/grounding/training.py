"""Train one method for one task: late fusion's head on frozen tokens first, the others from there."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from bayes_adapters import AdapterGuide, AdapterModel
from bayes_adapters.files._whole_file import replace_file
from bayes_adapters.training import FitResult, fit
from examples.grounding.data import Grounding, Sizes
from examples.grounding.examples import Examples, Tokens
from examples.grounding.methods import FIRST, TASKS, Method, Parts, find


@dataclass(frozen=True)
class Settings:
    """What is the same for all methods.

    Args:
        sizes: scenes of each split.
        frozen_epochs, frozen_rate: passes and peak learning rate of late fusion's head, and of Wander.
        epochs, rate: of what starts from that head; adapters and head have one rate.
        batch_size: expressions per step.
        kl_weight: of a random Φ's KL, the mean over sites, per nat.
        samples: draws at test, where there is something to draw.
        hidden: of the head.
        alpha: share of boxes that a conformal box may miss.
    """

    sizes: Sizes = field(default_factory=lambda: Sizes(1200, 120, 200, 120, 120))
    frozen_epochs: int = 10
    frozen_rate: float = 2e-3
    epochs: int = 1
    rate: float = 1e-3
    batch_size: int = 32
    kl_weight: float = 1e-4
    samples: int = 6
    hidden: int = 64
    alpha: float = 0.1


@dataclass(frozen=True, eq=False)
class Study:
    """One seed: its splits, and the frozen encoders.

    Args:
        splits: train, validation, and those that are measured.
        encoders: makes ``vision`` and ``text``, frozen, anew for each model.
        tokenizer: of the text encoder.
        seed: of training.
        settings: see there.
        folder: where heads of late fusion are kept for other methods; None keeps none.
    """

    splits: Mapping[str, Grounding]
    encoders: Any
    tokenizer: Any
    seed: int
    settings: Settings = field(default_factory=Settings)
    folder: Path | None = None

    @cached_property
    def tokens(self) -> dict[str, Tokens]:
        """What the frozen encoders make of each split, made once."""
        frozen = self.encoders()
        return {name: Tokens.of(data, frozen, self.tokenizer) for name, data in self.splits.items()}

    def examples(self, split: str, task: str, frozen: bool) -> Examples:
        """Return a split's expressions with the targets of a task."""
        tokens = self.tokens[split] if frozen else None
        return Examples(self.splits[split], TASKS[task], self.tokenizer, tokens)

    def parts(self, task: str, frozen: bool) -> Parts:
        """Return what a method is built from."""
        nets = self.tokens["train"].stand_ins() if frozen else self.encoders()
        side, vit = self.splits["train"].scenes.shape[-1], self.encoders()["vision"].config
        grid = (side // vit.patch_size, side // vit.patch_size)
        return Parts(nets, task, len(self.splits["train"]), grid, side, self.settings.hidden)


@dataclass(frozen=True)
class Trained:
    """A trained method.

    Args:
        model, guide: with the epoch of the lowest validation NLL.
        frozen: whether it reads tokens that are made once.
        samples: draws of a prediction.
        seconds: processor time of training, that of late fusion's head not counted.
        fitted: what ``fit`` said.
    """

    model: AdapterModel
    guide: AdapterGuide
    frozen: bool
    samples: int
    seconds: float
    fitted: FitResult

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(p.numel() for module in (self.model, self.guide) for p in module.parameters() if p.requires_grad)


def train(study: Study, name: str) -> Trained:
    """Train a row ``method.task`` of the study."""
    method, task = find(name)
    torch.manual_seed(study.seed)
    model, guide = method.build(study.parts(task, method.frozen))
    if method.warm:
        model.head.load_state_dict(first_head(study, task))
    begun = time.process_time()
    fitted = _fit(study, method, task, model, guide)
    seconds = time.process_time() - begun
    if name.startswith(f"{FIRST}."):
        _keep(study, task, model.head)
    return Trained(model, guide, method.frozen, study.settings.samples if method.random else 1, seconds, fitted)


def first_head(study: Study, task: str) -> dict[str, Tensor]:
    """Return the weights of late fusion's head for this task and seed: kept ones, or trained now."""
    path = _kept(study, task)
    if path is not None and path.is_file():
        return load_file(path)
    return train(study, f"{FIRST}.{task}").model.head.state_dict()


def _kept(study: Study, task: str) -> Path | None:
    return None if study.folder is None else study.folder / f"{FIRST}.{task}-{study.seed}.safetensors"


def _keep(study: Study, task: str, head: nn.Module) -> None:
    """Write late fusion's head where other methods of the seed find it, in one step: two runs may do it at once."""
    if (path := _kept(study, task)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, serialise({key: value.contiguous() for key, value in head.state_dict().items()}))


def _fit(study: Study, method: Method, task: str, model: AdapterModel, guide: AdapterGuide) -> FitResult:
    settings = study.settings
    epochs = settings.epochs if method.warm else settings.frozen_epochs
    rate = settings.rate if method.warm else settings.frozen_rate
    training = study.examples("train", task, method.frozen)
    steps = epochs * -(-len(training) // settings.batch_size)
    with warnings.catch_warnings():
        if len(TASKS[task]) == 1:  # the other task has no targets, and its part of the head is not looked at
            warnings.filterwarnings("ignore", "No example of the epoch has a label", UserWarning)
        return fit(
            model,
            guide,
            training.training(settings.batch_size, study.seed),
            epochs=epochs,
            optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=1e-2),
            scheduler=partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=partial(_shape, steps=steps)),
            kl_weight=settings.kl_weight if method.random else 0.0,
            kl_mode="per_token_mean",
            clip_norm=1.0,
            validation=study.examples("validation", task, method.frozen).in_order(2 * settings.batch_size),
            num_samples=settings.samples if method.random else 1,
            seed=study.seed,
        )


def _shape(step: int, *, steps: int) -> float:
    """Rise over a tenth of the steps, then a half cosine."""
    warm = max(1, steps // 10)
    return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(step, steps) / steps))
