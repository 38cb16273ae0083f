"""Body signals twice: is this person under stress, and does this motion belong to this window?

``stress`` is the task of :mod:`examples.studies.body_signals`, where every stream says a little by itself. ``matched``
is its opposite on the same people, windows and encoders: the stream ACC of an example is its own or that of another
window of the same person, with equal probability. Each stream alone, and so a sum over streams, says nothing; only the
relation of two says anything. It is there: motion disturbs the pulse, and how near the logarithms of both windows'
deviations are, standardised within a person, tells own from other with an AUC of .70, by hand and without training.
(With HR in the place of ACC, and the pulse's rate by its spectrum: .54.)
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters import Batch
from examples.studies.body_signals.adapters import Encoded
from examples.studies.body_signals.data import MODALITIES, SECONDS, Signals, load
from examples.studies.body_signals.derived import with_derived
from examples.studies.body_signals.task import SPLITS, Task
from examples.studies.body_signals.task import Settings as Fold
from examples.studies.wander.problems import Part, Problem, Settings

SWAPPED = "ACC"
"""The stream that may come from another window."""
STREAMS: dict[str, tuple[str, ...]] = {
    "stress": tuple(MODALITIES),
    "stress-half": tuple(MODALITIES),
    "stress-quarter": tuple(MODALITIES),
    "stress-2": ("EDA", "HR"),
    "stress-7": (*MODALITIES, "HRV", "MOTION"),
    "matched": tuple(MODALITIES),
    "matched-2": ("BVP", "ACC"),
}
"""Task → its streams."""
SHARES = {"stress-half": 0.5, "stress-quarter": 0.25}
"""Task → share of the training people, where it is not 1; the encoders saw all of them, without labels."""


@dataclass(frozen=True)
class Body(Problem):
    """One fold of people.

    Args:
        task: its windows, frozen encoders, and frames; made for this task's streams only.
        settings: see :class:`~examples.studies.wander.problems.Problem`.
    """

    task: Task = field(kw_only=True)

    @classmethod
    def load(
        cls,
        name: str,
        seed: int,
        data: Path | None = None,
        *,
        fold: Fold | None = None,
        encoders: Path | None = None,
        settings: Settings | None = None,
    ) -> Body:
        """Read windows, take the streams of ``name``, and make fold ``seed``; encoders come from the cache."""
        signals = load(data)
        signals = with_derived(signals) if len(STREAMS[name]) > len(MODALITIES) else signals
        signals = replace(signals, values={stream: signals.values[stream] for stream in STREAMS[name]})
        task = Task.build(signals, seed, fold or Fold(), encoders)
        if name in SHARES:
            task = _fewer(task, SHARES[name], seed)
        return cls(name, settings or Settings(), task=task)

    @property
    def streams(self) -> tuple[str, ...]:
        """Names of the streams."""
        return STREAMS[self.name]

    @property
    def swaps(self) -> bool:
        """Whether the question is if a stream belongs to the window."""
        return self.name.startswith("matched")

    @property
    def lengths(self) -> Mapping[str, int]:
        return dict.fromkeys(self.streams, SECONDS)

    @property
    def count(self) -> int:
        return len(self.task.signals["train"])

    @property
    def conditions(self) -> Sequence[str]:
        one = [f"{kind}-{stream}" for kind in ("without", "only") for stream in self.streams]
        return (self.plain, *([] if self.swaps else one))

    def summary(self, condition: str) -> str:
        """``without-1`` and ``only-1`` are means over streams."""
        kind, _, stream = condition.partition("-")
        return f"{kind}-1" if stream else condition

    def encoders(self, encoded: bool) -> nn.ModuleDict:
        if encoded:
            return nn.ModuleDict({name: Encoded(self.task.encoders[name].config.hidden_size) for name in self.streams})
        return nn.ModuleDict({name: copy.deepcopy(self.task.encoders[name]) for name in self.streams})

    @cached_property
    def _encoded(self) -> Mapping[str, Signals]:
        return {
            split: replace(self.task.signals[split], values={n: f.values for n, f in self.task.frames[split].items()})
            for split in SPLITS
        }

    def _windows(self, split: str, encoded: bool) -> Signals:
        return (self._encoded if encoded else self.task.signals)[split]

    def training(self, encoded: bool, seed: int) -> WindowBatches:
        withheld = 0.0 if self.swaps else self.settings.withheld
        return WindowBatches(self._windows("train", encoded), self.settings.batch_size, withheld, self.swaps, seed)

    def validation(self, encoded: bool) -> list[Batch]:
        return _batches(self._asked("validation", encoded), None)

    def test(self, encoded: bool, condition: str) -> Part:
        windows = self._asked("test", encoded)
        kind, _, stream = condition.partition("-")
        chosen = {"only": [stream], "without": [s for s in self.streams if s != stream]}.get(kind)
        seen: dict[int, int] = {}
        names = []
        for person in windows.people.tolist():
            seen[person] = seen.get(person, -1) + 1
            names.append((f"{person}/{seen[person]}", str(person)))
        return Part(_batches(windows, chosen), names)

    def _asked(self, split: str, encoded: bool) -> Signals:
        """The windows; or each of them twice, with its own motion and with another's."""
        windows = self._windows(split, encoded)
        if not self.swaps:
            return windows
        other = others(windows.people, torch.Generator().manual_seed(len(windows)))
        ones = torch.ones_like(windows.labels)
        both = {k: torch.cat([v, v[other] if k == SWAPPED else v]) for k, v in windows.values.items()}
        return Signals(both, torch.cat([ones, 0 * ones]), windows.people.repeat(2))


def others(people: Tensor, generator: torch.Generator) -> Tensor:
    """Return for each window the number of another window of the same person, drawn evenly.

    >>> others(torch.tensor([1, 1, 4, 4]), torch.Generator())
    tensor([1, 0, 3, 2])
    """
    out = torch.empty_like(people)
    for person in people.unique():
        rows = (people == person).nonzero().flatten()
        shift = torch.randint(1, max(2, len(rows)), (len(rows),), generator=generator)
        out[rows] = rows[(torch.arange(len(rows)) + shift) % len(rows)]
    return out


def _fewer(task: Task, share: float, seed: int) -> Task:
    people = list(task.fold.train)
    random.Random(f"share/{seed}").shuffle(people)
    kept = torch.tensor(people[: max(2, round(share * len(people)))])
    rows = torch.isin(task.signals["train"].people, kept).nonzero().flatten()
    signals = {**task.signals, "train": task.signals["train"][rows]}
    frames = {**task.frames, "train": {name: f[rows] for name, f in task.frames["train"].items()}}
    return replace(task, signals=signals, frames=frames)


def _batches(windows: Signals, present: Sequence[str] | None, batch_size: int = 256) -> list[Batch]:
    flags = {name: torch.full((len(windows),), present is None or name in present) for name in windows.values}
    rows = torch.arange(len(windows)).split(batch_size)
    return [_batch(windows[part], part, {name: flag[part] for name, flag in flags.items()}) for part in rows]


def _batch(windows: Signals, rows: Tensor, present: Mapping[str, Tensor]) -> Batch:
    inputs: dict[str, Tensor] = {}
    for name, values in windows.values.items():
        if bool(present[name].any()):
            inputs |= {f"{name}.signal": values, f"{name}.present": present[name]}
    return Batch(inputs, windows.labels.float(), index=rows)


class WindowBatches:
    """Training windows, of which each epoch withholds, or swaps, others.

    Args:
        windows: of the training people.
        batch_size: windows a step.
        withheld: probability with which each stream is withheld; one always stays.
        swaps: whether half of the windows get the motion of another, and the label says which.
        seed: of the order and of all this.
    """

    def __init__(self, windows: Signals, batch_size: int, withheld: float, swaps: bool, seed: int) -> None:
        self.windows, self.batch_size, self.withheld, self.swaps = windows, batch_size, withheld, swaps
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, what is withheld and what is swapped."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.windows) // self.batch_size)

    def identity(self) -> dict[str, Any]:
        """What decides the batches, for checkpoints."""
        own = {k: v for k, v in vars(self).items() if k not in ("windows", "epoch")}
        return {"windows": len(self.windows), "streams": list(self.windows.values)} | own

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.windows)
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
        order = torch.randperm(count, generator=generator)
        present = torch.rand(count, len(self.windows.values), generator=generator) >= self.withheld
        present[~present.any(1)] = True
        windows = self.windows
        if self.swaps:
            own = torch.rand(count, generator=generator) < 0.5
            source = torch.where(own, torch.arange(count), others(windows.people, generator))
            values = {**windows.values, SWAPPED: windows.values[SWAPPED][source]}
            windows = Signals(values, own.long(), windows.people)
        for rows in order.split(self.batch_size):
            columns = dict(zip(windows.values, present[rows].T, strict=True))
            yield _batch(windows[rows], rows, columns)
