"""Measure a fitted method on unseen people, with every set of streams withheld.

Conditions: ``all``; ``without-k`` for k = 1 … 4, each metric averaged over all sets of k withheld streams (5, 10, 10
and 5 of them, equal weights; ``n`` is the number of windows, not of windows times sets); and by name
``without-EDA`` (one stream withheld) and ``only-EDA`` (all others withheld). Predictions are kept for every set.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace

from torch import Tensor

from bayes_adapters.analysis.metrics import Decomposition, decompose
from bayes_adapters.analysis.records import Record, score
from bayes_adapters.errors import DataError
from examples.studies.body_signals.data import MODALITIES, Signals
from examples.studies.body_signals.methods import Fitted
from examples.studies.body_signals.records import Row
from examples.studies.body_signals.task import Task

CONDITIONS = (
    "all",
    *(f"without-{k}" for k in range(1, len(MODALITIES))),
    *(f"without-{name}" for name in MODALITIES),
    *(f"only-{name}" for name in MODALITIES),
)


WITHHELD: tuple[tuple[str, ...], ...] = tuple(
    withheld for k in range(len(MODALITIES)) for withheld in itertools.combinations(MODALITIES, k)
)
"""Every set of streams that can be withheld, the empty one first."""


def condition_of(withheld: Sequence[str]) -> str:
    """Name the condition in which ``withheld`` are missing, as :class:`Row` does."""
    return f"without-{'+'.join(withheld)}" if withheld else "all"


def evaluate(fitted: Fitted, task: Task, method: str, seed: int, split: str = "test") -> tuple[list[Record], list[Row]]:
    """Return the records of all conditions, and what was said about every window with each set of streams withheld.

    ``auroc_ood`` compares a condition's epistemic uncertainty with that of the same windows when nothing is withheld.
    ``seconds`` is the time to probabilities, from cached frames, or from samples where encoders are adapted.
    """
    windows = task.signals[split]
    reference: Decomposition | None = None
    by_set: dict[tuple[str, ...], Record] = {}
    rows: list[Row] = []
    for withheld in WITHHELD:
        present = [name for name in MODALITIES if name not in withheld]
        started = time.perf_counter()
        draws = fitted.draws(split, present)
        seconds = time.perf_counter() - started
        uncertainty = decompose(draws)
        names = (method, seed, split, condition_of(withheld))
        probs, samples = draws.mean(0), len(draws)
        record = score(
            *names, probs, windows.labels, uncertainty, reference=reference, samples=samples, seconds=seconds
        )
        by_set[withheld] = replace(record, parameters=float(fitted.parameters))
        reference = reference or uncertainty
        columns = zip(_names(windows), windows.labels.tolist(), probs.tolist(), *map(_list, uncertainty), strict=True)
        rows += [Row(method, seed, names[3], *name, *numbers) for name, *numbers in columns]
    return [_condition(name, by_set) for name in CONDITIONS], rows


def _list(values: Tensor) -> list[float]:
    return values.double().tolist()


def _names(windows: Signals) -> list[tuple[str, str]]:
    """(window, person) of every window; windows of a person are counted in the order of the file."""
    seen: Counter[int] = Counter()
    names = []
    for person in windows.people.tolist():
        names.append((f"{person}/{seen[person]}", str(person)))
        seen[person] += 1
    return names


def _condition(name: str, by_set: dict[tuple[str, ...], Record]) -> Record:
    if name == "all":
        return replace(by_set[()], condition=name)
    kind, _, what = name.partition("-")
    if what.isdigit():
        return replace(average([r for withheld, r in by_set.items() if len(withheld) == int(what)]), condition=name)
    withheld = tuple(m for m in MODALITIES if (m == what) == (kind == "without"))
    return replace(by_set[withheld], condition=name)


def average(records: Sequence[Record]) -> Record:
    """Return the record whose every metric is the mean over ``records``, leaving out those where it is not defined.

    Raises:
        DataError: no record, or records of different methods, seeds, splits, sizes or numbers of draws.
    """
    kinds = {(r.method, r.seed, r.split, r.n, r.samples) for r in records}
    if len(kinds) != 1:
        raise DataError(f"Records to average must be of one method, seed, split and size; got {sorted(kinds)[:4]}.")
    means: dict[str, float] = {}
    for field in fields(Record):
        values = [getattr(r, field.name) for r in records]
        if isinstance(values[0], float):
            defined = [v for v in values if not math.isnan(v)]
            means[field.name] = math.fsum(defined) / len(defined) if defined else math.nan
    return replace(records[0], **means)  # type: ignore[arg-type]
