"""What every method of a comparison has in common: its settings, and the utterances of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bayes_adapters.heads import Head
from examples.studies.length_batches import LengthBatches
from examples.studies.meld.data import Meld, Utterance, Utterances


@dataclass(frozen=True)
class Settings:
    """What is the same for every method of a comparison.

    Args:
        train_size: training utterances, drawn by the seed of the run; None is all 9,989.
        dev_size: utterances on which the epoch is chosen, the same in all runs.
        test_size: at least this many test utterances, in whole dialogues, the same in all runs; None is all.
        epochs: passes over the training utterances.
        batch_size: utterances a step.
        lr: peak learning rate of AdamW, after a warm-up of 20 steps, then linear decay.
        rank: r of the adapters, in query and value of all layers.
        alpha: their scale is alpha / rank.
        prior_scale: β of the prior N(0, β²) on token cores.
        kl_weight: weight of the KL per nat of methods with a posterior over token cores.
        members: members of an ensemble.
        samples: posterior draws at test.
        dev_samples: posterior draws on the dev utterances.
        select: whether the epoch with the lowest dev NLL is kept, rather than the last one.
        device: torch device.
    """

    train_size: int | None = 2500
    dev_size: int | None = 300
    test_size: int | None = 1000
    epochs: int = 2
    batch_size: int = 16
    lr: float = 2e-3
    rank: int = 8
    alpha: float = 16.0
    prior_scale: float = 0.2
    kl_weight: float = 1e-4
    members: int = 3
    samples: int = 10
    dev_samples: int = 2
    select: bool = True
    device: str = "cpu"


@dataclass(frozen=True)
class Task:
    """The utterances of one run.

    Args:
        train: drawn by the run's seed.
        dev: to choose the epoch on.
        test: to report on.
        foreign: inputs from elsewhere, without sentiment; None where nobody asks for them.
        backbone: makes a fresh backbone.
        targets: suffixes of its layers to adapt.
        head: makes the head above it; None is a linear one.
    """

    train: Utterances
    dev: Utterances
    test: Utterances
    foreign: Utterances | None
    backbone: Callable[[], nn.Module]
    targets: Sequence[str] = ("query", "value")
    head: Callable[[], Head] | None = None

    @classmethod
    def make(
        cls,
        data: Meld,
        foreign: Sequence[Utterance],
        tokenizer: Any,
        backbone: Callable[[], nn.Module],
        settings: Settings,
        seed: int,
    ) -> Task:
        """Draw the subsets of one run."""
        parts = {
            "train": data.sample("train", settings.train_size, seed),
            "dev": data.sample("dev", settings.dev_size, 0),
            "test": data.dialogues("test", settings.test_size),
            "foreign": foreign,
        }
        sets: dict[str, Any] = {name: Utterances(part, tokenizer) for name, part in parts.items()}
        return cls(**sets, backbone=backbone)

    def batches(
        self, part: str, settings: Settings, *, shuffle: bool = False, seed: int = 0
    ) -> LengthBatches[Utterances]:
        """Cut ``train``, ``dev``, ``test`` or ``foreign`` into batches."""
        data: Utterances = getattr(self, part)
        return LengthBatches(data, settings.batch_size, length=data.length, shuffle=shuffle, seed=seed)
