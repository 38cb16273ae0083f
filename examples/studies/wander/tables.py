"""The tables of the page: what every variant reaches, which explanation holds where, gradients, and the streams."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from bayes_adapters.analysis import metrics
from bayes_adapters.analysis.bootstrap import PairedDifference
from examples.studies.body_signals.differences import mean_auc
from examples.studies.comparison import Metric, cell, markdown, paired_differences, signed
from examples.studies.seeds import Pair, difference
from examples.studies.wander.records import Result, Row
from examples.studies.wander.variants import TASKS

PLAIN = {"script": "clean"}
"""Task → the condition its tables are of, where it is not ``all``."""
FOLDS = 5


class Question(NamedTuple):
    """An explanation: what it says, and the difference (variant − other) that would show it."""

    says: str
    variant: str
    other: str


QUESTIONS = (
    Question("as released it reads one stream", "released", "linear"),
    Question("residual of every stream", "every-stream", "released"),
    Question("after every layer, not the last", "every-layer", "every-stream"),
    Question("streams' means beside the product", "beside", "every-stream"),
    Question("**what the product adds to a linear head**", "beside", "linear"),
    Question("product, not a sum of the same size", "beside", "sum"),
    Question("product, not pairs", "beside", "pairs"),
    Question("the product without the streams", "product-only", "linear"),
    Question("factors not normalised", "beside-raw", "beside"),
    Question("gate starts at 1", "beside-gate-1", "beside"),
    Question("gate starts at 1, as released", "released-gate-1", "released"),
    Question("gate learns ten times as fast", "beside-gate-fast", "beside"),
    Question("head reads all r tokens", "beside-tokens", "beside"),
    Question("rank 2", "beside-r2", "beside"),
    Question("rank 32", "beside-r32", "beside"),
    Question("a CP of eight terms", "beside-terms-8", "beside"),
    Question("released rank and terms", "beside-released-size", "beside"),
    Question("released rank and terms, as released", "released-size", "released"),
    Question("width 16", "beside-width-16", "beside"),
    Question("warm start", "beside-warm", "beside"),
    Question("LoRA in every encoder", "lora", "linear"),
    Question("product on top of LoRA", "lora-beside", "lora"),
    Question("the same, warm start", "lora-beside-warm", "lora"),
    Question("two layers, no product", "two-layer", "linear"),
    Question("the product against two layers", "beside", "two-layer"),
    Question("product beside two layers", "two-layer-beside", "two-layer"),
    Question("product beside late fusion", "lora-two-layer-beside", "lora-two-layer"),
)
"""The explanations of :mod:`examples.studies.wander.variants`, in its order."""
METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {
    "auc": lambda probs, labels: mean_auc(probs[:, None], labels.double()),
    "nll": metrics.nll,
}
"""Metric → (probabilities, labels) → number."""


def split(method: str) -> tuple[str, str]:
    """Return task and variant of a record's ``method``."""
    task, _, variant = method.partition(".")
    return task, variant


def plain(records: Iterable[Result]) -> list[Result]:
    """Return the records of the condition that tables are of."""
    return [r for r in records if r.condition == PLAIN.get(split(r.method)[0], "all")]


def means(records: Sequence[Result]) -> list[str]:
    """Return a Markdown table with a row for every task and variant: means ± standard deviations over seeds."""
    head = ["task", "variant", "seeds", "trained", "rate", "AUC", "NLL", "gates closed: AUC", "NLL", "gate"]
    head += ["1 withheld: AUC", "1 alone: AUC"]
    cells: dict[str, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cells[record.method][record.condition].append(record)
    rows = []
    for method, conditions in cells.items():
        task, variant = split(method)
        own = conditions[PLAIN.get(task, "all")]
        fields = ("auc", "nll", "closed_auc", "closed_nll", "gate")
        numbers = [cell([getattr(r, field) for r in own]) for field in fields]
        others = [cell([r.auc for r in conditions[c]]) if c in conditions else "–" for c in ("without-1", "only-1")]
        rates = " ".join(f"{rate:g}" for rate in sorted({r.rate for r in own}))
        rows.append([task, variant, str(len(own)), cell([r.parameters for r in own]), rates, *numbers, *others])
    return markdown(head, rows)


def gradients(records: Sequence[Result]) -> list[str]:
    """Return a Markdown table of norms of gradients: of F, G, W, gates and head; and F's first depth over its last."""
    cells: dict[str, list[Result]] = defaultdict(list)
    for record in plain(records):
        if record.feature == record.feature:
            cells[record.method].append(record)
    fields = ("feature", "token", "down", "gate_gradient", "head", "depth_ratio")
    rows = [[*split(m), *(cell([getattr(r, f) for r in own], 4) for f in fields)] for m, own in cells.items()]
    return markdown(["task", "variant", "F", "G", "W", "gate", "head", "F: first / last depth"], rows)


def streams(records: Sequence[Result], cost: Mapping[str, Mapping[str, float]] | None = None) -> list[str]:
    """Return a Markdown table of M = 2, 5, 7 streams: quality, and where it was measured what a step costs.

    Args:
        records: of all runs.
        cost: ``M.variant`` → ``ratio`` to a linear head's step, ``mebibytes`` kept for backward, ``parameters``.
    """
    tasks = {"stress-2": 2, "stress": 5, "stress-7": 7}
    own = plain(records)
    rows = []
    for variant in TASKS["stress-2"]:
        for task, count in tasks.items():
            found = [r for r in own if r.method == f"{task}.{variant}"]
            costs = (cost or {}).get(f"{count}.{variant}", {})
            if found or costs:
                numbers = [cell([getattr(r, field) for r in found]) for field in ("auc", "nll", "feature")]
                measured = [f"{costs[k]:,.{d}f}" if k in costs else "–" for k, d in COST.items()]
                rows.append([variant, str(count), *numbers, *measured])
    heads = ["variant", "M", "AUC", "NLL", "gradient of F", "step, in linear's", "MiB kept for backward", "trained"]
    return markdown(heads, rows)


COST = {"ratio": 2, "mebibytes": 1, "parameters": 0}
"""Column of a cost → decimals."""


def answers(rows: Iterable[Row], records: Sequence[Result], draws: int = 500) -> list[str]:
    """Return a Markdown table with a row for every question and task that has been measured: differences in AUC, NLL.

    Args:
        rows: predictions of all runs.
        records: their records.
        draws: number of resamples.
    """
    said = _said(rows)
    lines = []
    for question in QUESTIONS:
        for task, own in TASKS.items():
            pair = [f"{task}.{name}" for name in (question.variant, question.other)]
            if {question.variant, question.other} <= set(own) and all(said.get(name) for name in pair):
                found = [difference_of(said, records, (pair[0], pair[1]), metric, draws) for metric in METRICS]
                shown = [signed(*one) if one else "–" for one in found]
                lines.append([question.says, f"{question.variant} − {question.other}", task, *shown])
    return markdown(["explanation", "difference", "task", "AUC", "NLL"], lines)


Said = Mapping[str, Mapping[int, Mapping[Hashable, Sequence[float]]]]


def _said(rows: Iterable[Row]) -> Said:
    found: dict[str, dict[int, dict[Hashable, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.condition == PLAIN.get(split(row.method)[0], "all"):
            numbers = [float(row.seed % FOLDS), float(row.label), row.probability]
            found[row.method][row.seed][(row.key, row.group)] = numbers
    return found


def difference_of(
    said: Said, records: Sequence[Result], pair: tuple[str, str], metric: str, draws: int = 500
) -> PairedDifference | None:
    """Return the first of ``pair`` minus the second with a 95 % interval; None until both have finished enough.

    Body signals: a seed is a fold of people, each tested once; metrics are averaged over folds, and people resampled,
    which is over both. Scripts: over training seeds and scripts together, as :mod:`examples.studies.seeds` does.
    """
    score, (method, other) = METRICS[metric], pair
    both = {name: said[name] for name in (method, other)}
    seeds = sorted(set(both[method]) & set(both[other]))
    if split(method)[0] != "script":
        whole = [s for s in seeds if set(seeds).issuperset(range(s // FOLDS * FOLDS, (s // FOLDS + 1) * FOLDS))]
        if not whole:
            return None
        merged = {name: _merged(runs, whole) for name, runs in both.items()}

        def over_folds(values: Tensor) -> float:
            folds = (values[values[:, 0] == fold] for fold in values[:, 0].unique())
            return fmean(_scored(score, fold) for fold in folds)

        return _interval(merged, pair, over_folds, draws)
    if len(seeds) < 2:
        return None
    own = {name: {s: runs[s] for s in seeds} for name, runs in both.items()}
    units = _interval(own, pair, lambda values: _scored(score, values), draws)
    asked = Pair("", method, other, PLAIN["script"], metric, metric, (units.low, units.high))
    found = difference([vars(r) for r in records if r.seed in seeds], asked)
    return PairedDifference(found.mean, found.mean - found.over_both, found.mean + found.over_both)


def _merged(
    runs: Mapping[int, Mapping[Hashable, Sequence[float]]], seeds: Sequence[int]
) -> dict[int, dict[Hashable, Sequence[float]]]:
    """The folds of a partition as one seed."""
    merged: dict[int, dict[Hashable, Sequence[float]]] = defaultdict(dict)
    for seed in seeds:
        merged[seed // FOLDS] |= runs[seed]
    return merged


def _interval(outputs: Said, pair: tuple[str, str], score: Metric, draws: int) -> PairedDifference:
    return paired_differences(outputs, pair[1], {"": score}, group=_group, draws=draws)[pair[0]][""]


def _group(key: tuple[str, str]) -> str:
    return key[1]


def _scored(score: Callable[[Tensor, Tensor], float], values: Tensor) -> float:
    labels = values[:, 1].long()
    return score(values[:, 2], labels) if len(torch.unique(labels)) > 1 else float("nan")
