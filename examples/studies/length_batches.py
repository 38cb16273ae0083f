"""Batches of examples of similar length, so that little of a batch is padding."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Generic, Protocol, TypeVar

from bayes_adapters import Batch

STRETCH = 8
"""Batches that are sorted together in training."""


class Examples(Protocol):
    """A data set that makes batches of any of its examples."""

    def __len__(self) -> int: ...

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the examples of these numbers, padded, with their numbers as ``index``."""
        ...


_D = TypeVar("_D", bound=Examples)


class LengthBatches(Generic[_D]):
    """Batches in an order that is a function of (seed, epoch) and of the examples' lengths alone.

    Training (``shuffle``): a new order every epoch, sorted by length within stretches of :data:`STRETCH` batches.
    Evaluation: sorted throughout; each batch's ``index`` says which examples it holds.

    Args:
        dataset: what the batches are made of.
        batch_size: examples a batch; the last of a stretch or window may have fewer.
        length: number of an example → what it is sorted by.
        window: number of an example → its window. Windows come before lengths in the sorting, and a batch of an
            evaluation has one window only. None means that all examples share one.
        shuffle: whether the batches are for training.
        seed: of the training order.
    """

    def __init__(
        self,
        dataset: _D,
        batch_size: int,
        *,
        length: Callable[[int], Any],
        window: Callable[[int], int] | None = None,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.dataset, self.batch_size, self.shuffle, self.seed, self.epoch = dataset, batch_size, shuffle, seed, 0
        self._length, self._window = length, window

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        if self.shuffle or self._window is None:
            return -(-len(self.dataset) // self.batch_size)
        return len(self.rows())

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.rows():
            yield self.dataset.batch(rows)

    def rows(self) -> list[list[int]]:
        """Return the numbers of the examples of each batch of this epoch."""
        order, source = list(range(len(self.dataset))), random.Random(f"{self.seed}/{self.epoch}/order")
        stretch = len(order)
        if self.shuffle:
            source.shuffle(order)
            stretch = STRETCH * self.batch_size
        rows: list[list[int]] = []
        for start in range(0, len(order), stretch):
            part = sorted(order[start : start + stretch], key=self._key)
            pieces = [part] if self.shuffle else [list(own) for _, own in groupby(part, self._window_of)]
            rows += [own[i : i + self.batch_size] for own in pieces for i in range(0, len(own), self.batch_size)]
        if self.shuffle:
            source.shuffle(rows)
        return rows

    def _key(self, index: int) -> tuple[int, Any]:
        return self._window_of(index), self._length(index)

    def _window_of(self, index: int) -> int:
        return 0 if self._window is None else self._window(index)
