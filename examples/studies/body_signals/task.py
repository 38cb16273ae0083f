"""One fold, ready for any method: windows of its people, frozen encoders, and their frames of every window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bayes_adapters import Frames
from examples.studies.body_signals.data import Fold, Signals, load, make_fold
from examples.studies.body_signals.encoders import SignalEncoder, encode
from examples.studies.body_signals.pretrain import PretrainSettings, pretrained
from examples.studies.body_signals.probes import L2

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Settings:
    """What is the same for every method of a comparison.

    Args:
        pretrain: of the encoders.
        folds: parts that the people are divided into; one is the test.
        validation: people that choose settings.
        l2: weights that the probes may choose from.
    """

    pretrain: PretrainSettings = field(default_factory=PretrainSettings)
    folds: int = 5
    validation: int = 5
    l2: tuple[float, ...] = L2


@dataclass(frozen=True)
class Task:
    """What a method is fitted and measured on.

    Args:
        fold: its people.
        signals: split → standardised windows.
        encoders: modality → frozen encoder; methods that adapt encoders take a copy.
        frames: split → modality → encoded windows, values (N, 30, d).
    """

    fold: Fold
    signals: Mapping[str, Signals]
    encoders: Mapping[str, SignalEncoder]
    frames: Mapping[str, Mapping[str, Frames]]

    @classmethod
    def build(cls, signals: Signals, seed: int, settings: Settings, encoders: Path | None = None) -> Task:
        """Split, pre-train (or read from the cache) and encode.

        Args:
            signals: windows as loaded; they are standardised here.
            seed: which fold, and the seed of the encoders.
            settings: see there.
            encoders: folder of the encoders; None takes the cache.
        """
        everybody = signals.standardised()
        fold = make_fold(signals.people.tolist(), seed, folds=settings.folds, validation=settings.validation)
        models = pretrained(everybody, fold, settings.pretrain, encoders)
        parts = {split: everybody.of(getattr(fold, split)) for split in SPLITS}
        frames = {
            split: {name: encode(models[name], part.frames(name)) for name in part.values}
            for split, part in parts.items()
        }
        return cls(fold, parts, models, frames)

    @classmethod
    def load(cls, data: Path | None, seed: int, settings: Settings) -> Task:
        """Build the task from a file of windows; see :func:`examples.studies.body_signals.data.load`."""
        return cls.build(load(data), seed, settings)
