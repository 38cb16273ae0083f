"""What the variants are tried on: streams of several encoders, one yes or no an example, and who belongs together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bayes_adapters import Batch


@dataclass(frozen=True)
class Settings:
    """How every variant of a task is trained.

    Args:
        epochs: passes over the training examples; the one with the lowest validation NLL is kept.
        batch_size: examples a step.
        rates: the values of the one knob, the peak learning rate of AdamW (after a warm-up of 30 steps, then linear
            decay). Every variant tries all, and the validation NLL of its best epoch chooses.
        withheld: probability with which each stream of a training example is withheld, where a task withholds.
    """

    epochs: int = 8
    batch_size: int = 64
    rates: tuple[float, ...] = (7e-4, 2e-3, 6e-3)
    withheld: float = 0.2


@dataclass(frozen=True)
class Part:
    """Examples that something is measured on.

    Args:
        batches: in order.
        names: (example, its group) of every example, in the order of the batches; groups are resampled whole.
    """

    batches: Sequence[Batch]
    names: Sequence[tuple[str, str]]

    @property
    def labels(self) -> Tensor:
        """Shape (N,), int64."""
        return torch.cat([batch.targets for batch in self.batches if isinstance(batch.targets, Tensor)]).long()


@dataclass(frozen=True)
class Problem(ABC):
    """A task. ``encoded`` asks for encoders that have run, :class:`~examples.studies.body_signals.adapters.Encoded`.

    Attributes:
        name: of the task.
        settings: of training.
        plain: the condition in which nothing is withheld or corrupted.
    """

    name: str
    settings: Settings = field(default_factory=Settings)
    plain = "all"

    @property
    @abstractmethod
    def lengths(self) -> Mapping[str, int]:
        """Encoder → rows of its token factor."""

    @property
    @abstractmethod
    def count(self) -> int:
        """N, the number of training examples of an epoch."""

    @property
    @abstractmethod
    def conditions(self) -> Sequence[str]:
        """What a fitted variant is measured under, the plain one first."""

    @abstractmethod
    def encoders(self, encoded: bool) -> nn.ModuleDict:
        """Return frozen encoders by name, a copy where they are to be adapted."""

    @abstractmethod
    def training(self, encoded: bool, seed: int) -> Iterable[Batch]:
        """Return the training batches."""

    @abstractmethod
    def validation(self, encoded: bool) -> list[Batch]:
        """Return the batches that choose."""

    @abstractmethod
    def test(self, encoded: bool, condition: str) -> Part:
        """Return what a condition is measured on."""

    def summary(self, condition: str) -> str:
        """Return the name under which conditions are averaged."""
        return condition
