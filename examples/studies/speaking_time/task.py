"""The data, the frozen backbone, batches by length, and how predictions are scored."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Prediction, predict
from bayes_adapters.backbones import text_backbone
from bayes_adapters.errors import DataError
from examples.studies.speaking_time.data import Data, Spoken

_MOST_TOKENS = 64  # of a text; English prompts of 5 s have 20


@dataclass(frozen=True)
class Task:
    """The data, the frozen backbone, and the unit the models predict in.

    Args:
        data: see :class:`Data`.
        backbone: MiniLM without dropout; take :meth:`copy`.
        tokenizer: its.
        centre: mean of log(seconds) over the training scripts.
        spread: their standard deviation. Models predict ``(log(seconds) − centre) / spread``.
    """

    data: Data
    backbone: nn.Module
    tokenizer: Any
    centre: float
    spread: float

    @classmethod
    def make(cls, data: Data) -> Task:
        """Load the backbone and measure the training targets."""
        backbone, tokenizer = text_backbone()
        for module in backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # the only noise is the adapters'
        logs = log_seconds(data.train)
        return cls(data, backbone, tokenizer, float(logs.mean()), float(logs.std()))

    def copy(self) -> nn.Module:
        """Return a backbone that adapters may be put into."""
        return copy.deepcopy(self.backbone)

    def inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Return the tokens of texts, cut at 64."""
        options: dict[str, Any] = {"padding": True, "truncation": True, "max_length": _MOST_TOKENS}
        return dict(self.tokenizer(list(texts), return_tensors="pt", **options))

    def collate(self, rows: Sequence[Spoken]) -> Batch:
        """Return a batch with targets."""
        targets = (log_seconds(rows) - self.centre) / self.spread
        return Batch(self.inputs([row.text for row in rows]), targets.float())

    def batches(self, rows: Sequence[Spoken], size: int, seed: int) -> ByLength:
        """Return shuffled batches to train on."""
        return ByLength(rows, size, self.collate, seed)

    def held_out(self, rows: Sequence[Spoken], size: int = 64) -> list[Batch]:
        """Return batches with targets in the order of :func:`by_length`."""
        ordered = by_length(rows)
        return [self.collate(ordered[i : i + size]) for i in range(0, len(ordered), size)]

    def texts(self, texts: Sequence[str], size: int = 64) -> list[Batch]:
        """Return batches without targets, the shortest text first."""
        ordered = sorted(texts, key=len)
        return [Batch(self.inputs(ordered[i : i + size])) for i in range(0, len(ordered), size)]

    def measure(self, model: AdapterModel, guide: AdapterGuide, rows: Sequence[Spoken], **options: Any) -> Measured:
        """Predict ``rows``, in the order of :func:`by_length`, and score them in units of log(seconds).

        Args:
            model: trained.
            guide: its.
            rows: with their measured times.
            **options: of :func:`bayes_adapters.predict`.
        """
        found: Prediction = predict(model, guide, self.held_out(rows), return_samples=True, **options)
        assert found.log_density is not None
        mean = found.mean.double() * self.spread + self.centre
        error = mean - log_seconds(by_length(rows))
        losses = math.log(self.spread) - found.log_density.double()
        return Measured(mean, error, losses, self.variance(found))

    def variance(self, found: Prediction) -> Tensor:
        """Return the variance across draws of the predicted mean, shape (B,), float64, in squared log(seconds)."""
        if found.samples is None:
            raise DataError("The draws were not kept; call predict(…, return_samples=True).")
        return found.samples.double().var(0, unbiased=False) * self.spread**2


@dataclass(frozen=True, eq=False)
class Measured:
    """How well a method did on N scripts; RMSE and errors in log(seconds), so 0.1 is about 10 %.

    Args:
        mean: shape (N,), float64: the predictive mean.
        error: shape (N,), float64: ``mean`` minus the measured log(seconds).
        losses: shape (N,), float64: negative log predictive density of log(seconds), in nats.
        variance: shape (N,), float64: variance of the mean across draws.
    """

    mean: Tensor
    error: Tensor
    losses: Tensor
    variance: Tensor

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return float(self.error.square().mean().sqrt())

    @property
    def nll(self) -> float:
        """Mean loss, in nats."""
        return float(self.losses.mean())


class ByLength:
    """Shuffled batches of texts of similar length, so that little of a batch is padding: as an epoch's data for fit.

    The order depends on (seed, epoch) only: random, then sorted by length within stretches of four batches.
    """

    def __init__(
        self, rows: Sequence[Spoken], size: int, collate: Callable[[Sequence[Spoken]], Batch], seed: int
    ) -> None:
        self.rows, self.size, self.collate, self.seed, self.epoch = list(rows), size, collate, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.rows) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        source, order = random.Random(f"{self.seed}/{self.epoch}"), list(self.rows)
        source.shuffle(order)
        stretch = 4 * self.size
        order = [row for i in range(0, len(order), stretch) for row in by_length(order[i : i + stretch])]
        groups = [order[i : i + self.size] for i in range(0, len(order), self.size)]
        source.shuffle(groups)
        return map(self.collate, groups)


def by_length(rows: Sequence[Spoken]) -> list[Spoken]:
    """Return the rows sorted by the length of their text, then by key."""
    return sorted(rows, key=lambda row: (len(row.text), row.key))


def log_seconds(rows: Sequence[Spoken]) -> Tensor:
    """Return natural logs of the times in s, shape (N,), float64."""
    return torch.tensor([row.seconds for row in rows], dtype=torch.float64).log()


def line(data: Data) -> Measured:
    """Predict the test scripts by log(seconds) = a + b log(characters) + c characters, fitted by least squares.

    The density is a normal one with the standard deviation of the training residuals.
    """

    def design(rows: Sequence[Spoken]) -> Tensor:
        length = torch.tensor([len(row.text) for row in rows], dtype=torch.float64)
        return torch.stack([torch.ones_like(length), length.log(), length], 1)

    weights = torch.linalg.lstsq(design(data.train), log_seconds(data.train)[:, None]).solution[:, 0]
    residuals = design(data.train) @ weights - log_seconds(data.train)
    test = by_length(data.test)
    mean, truth = design(test) @ weights, log_seconds(test)
    losses = -torch.distributions.Normal(mean, residuals.square().mean().sqrt()).log_prob(truth)
    return Measured(mean, mean - truth, losses, torch.zeros_like(mean))


def repeat_sd(data: Data) -> float:
    """Return the standard deviation of log(seconds) between recordings of one script: what no text explains."""
    groups: dict[str, list[Spoken]] = {}
    for row in (*data.train, *data.validation, *data.test):
        groups.setdefault(row.script, []).append(row)
    squares = [(logs := log_seconds(rows)).sub(logs.mean()).square().sum() for rows in groups.values()]
    return float((torch.stack(squares).sum() / sum(len(rows) - 1 for rows in groups.values())).sqrt())
