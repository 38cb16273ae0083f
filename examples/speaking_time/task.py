"""What both examples share: the backbone, batches by length, the figures, and how a run is trained and measured."""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torchmetrics.functional.regression import spearman_corrcoef

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Prediction, predict
from bayes_adapters.backbones import text_backbone
from bayes_adapters.errors import BayesAdaptersError, DataError
from examples.speaking_time.data import Data, Spoken

_MOST_TOKENS = 64  # of a text; English prompts of 5 s have 20
_BOOTSTRAP = 1000


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

    @property
    def log_spread(self) -> float:
        """What an NLL of ``(log(seconds) − centre) / spread`` lacks to that of log(seconds), in nats."""
        return math.log(self.spread)

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
        nll = -float(found.log_density.double().mean()) + self.log_spread
        return Measured(float(error.square().mean().sqrt()), nll, mean, error, self.variance(found))

    def variance(self, found: Prediction) -> Tensor:
        """Return the variance across draws of the predicted mean, shape (B,), float64, in squared log(seconds)."""
        if found.samples is None:
            raise DataError("The draws were not kept; call predict(…, return_samples=True).")
        return found.samples.double().var(0, unbiased=False) * self.spread**2


@dataclass(frozen=True, eq=False)
class Measured:
    """How well a method did on N scripts; RMSE and errors in log(seconds), so 0.1 is about 10 %.

    Args:
        rmse: root of the mean squared error of the predictive mean.
        nll: mean negative log predictive density of log(seconds), in nats.
        mean: shape (N,), float64: the predictive mean.
        error: shape (N,), float64: ``mean`` minus the measured log(seconds).
        variance: shape (N,), float64: variance of the mean across draws.
    """

    rmse: float
    nll: float
    mean: Tensor
    error: Tensor
    variance: Tensor


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


def line(data: Data) -> float:
    """Return the RMSE on test scripts of log(seconds) = a + b log(characters) + c characters, by least squares."""

    def design(rows: Sequence[Spoken]) -> Tensor:
        length = torch.tensor([len(row.text) for row in rows], dtype=torch.float64)
        return torch.stack([torch.ones_like(length), length.log(), length], 1)

    weights = torch.linalg.lstsq(design(data.train), log_seconds(data.train)[:, None]).solution[:, 0]
    return float((design(data.test) @ weights - log_seconds(data.test)).square().mean().sqrt())


def repeat_sd(data: Data) -> float:
    """Return the standard deviation of log(seconds) between recordings of one script: what no text explains."""
    groups: dict[str, list[Spoken]] = {}
    for row in (*data.train, *data.validation, *data.test):
        groups.setdefault(row.script, []).append(row)
    squares = [(logs := log_seconds(rows)).sub(logs.mean()).square().sum() for rows in groups.values()]
    return float((torch.stack(squares).sum() / sum(len(rows) - 1 for rows in groups.values())).sqrt())


def spearman(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two tensors of shape (N,); ties have their mean rank.

    It is the same for any increasing functions of them: for a variance or its log, for |error| or its square. NaN where
    one of them is constant.

    >>> round(spearman(torch.tensor([1.0, 2.0, 2.0, 9.0]), torch.tensor([0.1, 0.2, 0.4, 0.3])), 4)
    0.6325
    """
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return math.nan
    return float(spearman_corrcoef(a.double(), b.double()))


def spearman_interval(a: Tensor, b: Tensor, scripts: Sequence[str], seed: int = 0) -> tuple[float, float, float]:
    """Return Spearman's ρ and the 2.5 % and 97.5 % quantiles of 1000 resamplings of whole scripts.

    Args:
        a: shape (N,).
        b: shape (N,).
        scripts: N labels; rows of one label are drawn together.
        seed: of the resampling.
    """
    members = [torch.tensor([i for i, own in enumerate(scripts) if own == name]) for name in dict.fromkeys(scripts)]
    source = random.Random(seed)
    draws = []
    for _ in range(_BOOTSTRAP):
        rows = torch.cat(source.choices(members, k=len(members)))
        draws.append(spearman(a[rows], b[rows]))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.nanquantile(torch.tensor(draws, dtype=torch.float64), ends).tolist()
    return spearman(a, b), low, high


def variance_ratio(elsewhere: Tensor, here: Tensor) -> float:
    """Return mean variance on other data divided by mean variance on the task's own.

    Raises:
        DataError: the second one is 0: nothing was drawn.

    >>> variance_ratio(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.5, 1.5]))
    3.0
    """
    if not float(here.mean()) > 0:
        raise DataError("The variance on the task's own texts is 0, so there is no ratio. Was there only one draw?")
    return float(elsewhere.mean() / here.mean())


def write_json(folder: Path, numbers: Mapping[str, Any]) -> None:
    """Write ``metrics.json`` into ``folder``, which is made when absent; NaN becomes null."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(_plain(numbers), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def command(run: Any, quick: Any, description: str | None, arguments: list[str] | None = None) -> int:
    """Run ``run`` with what the command line says; return 2 on an error that is the user's."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for metrics.json and the pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few scripts, epochs and draws: to see that it runs")
    given = parser.parse_args(arguments)
    try:
        run(quick if given.quick else None, seed=given.seed, out=given.out)
    except BayesAdaptersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
