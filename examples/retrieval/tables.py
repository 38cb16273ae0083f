"""What the runs say: means over seeds, and differences over seeds and scripts together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bayes_adapters.analysis.intervals import Interval, holm, pigeonhole
from bayes_adapters.analysis.metrics import auroc
from examples.retrieval.methods import BASE, METHODS
from examples.retrieval.records import Result, Row
from examples.studies.comparison import cell, grouped_difference, markdown, short, signed

MEANS: dict[str, str] = {
    "R@1": "recall1",
    "R@5": "recall5",
    "R@10": "recall10",
    "median rank": "median_rank",
    "script → recording R@1": "back1",
    "R@5 back": "back5",
    "R@10 back": "back10",
    "median rank back": "median_rank_back",
}
"""Heading → field, of the whole gallery."""
LISTS: dict[str, str] = {
    "R@1": "accuracy",
    "R@5": "list5",
    "NLL": "nll",
    "NLL with T": "scaled_nll",
    "ECE": "ece",
    "ECE with T": "scaled_ece",
    "shift by epistemic": "auroc_ood",
}
NO_MATCH: dict[str, str] = {
    "answered": "coverage",
    "answered without a partner": "false_coverage",
    "answered rightly": "right",
    "given and wrong": "given_wrong",
    "AUROC by similarity": "by_score",
    "by total": "by_total",
    "by epistemic": "by_epistemic",
    "by P(none)": "by_null",
    "NLL with none": "null_nll",
}
DIFFERENCES = ("clean", "white@-5", "babble@-5")
"""Conditions of the table of differences."""


class Measure(NamedTuple):
    """A column of the table of differences.

    Args:
        fields: of a row, that are read.
        mean: (fields (N, K)) → score of each recording (N,), whose mean it is; None where it is no mean.
        whole: (fields (N, K)) → one number, where it is no mean.
    """

    fields: tuple[str, ...]
    mean: Callable[[Tensor], Tensor] | None = None
    whole: Callable[[Tensor], float] | None = None


def _first(values: Tensor) -> Tensor:
    return (values[:, 0] == 1).double()


def _told_apart(values: Tensor, sign: float = 1.0) -> float:
    """AUROC of "no match": the second column against the first."""
    kinds = torch.cat([torch.zeros(len(values)), torch.ones(len(values))]).bool()
    return auroc(sign * values.T.flatten(), kinds)


MEASURES: dict[str, Measure] = {
    "R@1, all scripts": Measure(("rank",), _first),
    "R@1, lists": Measure(("list_rank",), _first),
    "NLL with T": Measure(("scaled_nll",), lambda values: values[:, 0]),
    "given and wrong": Measure(("wrong", "wrong_without"), lambda values: values.mean(1)),
    "no match by similarity": Measure(("score", "score_without"), whole=partial(_told_apart, sign=-1.0)),
    "no match by total": Measure(("total", "total_without"), whole=_told_apart),
    "no match by P(none)": Measure(("none", "none_without"), whole=_told_apart),
}
"""Heading → what is compared."""
Said = dict[str, dict[str, dict[int, list[Row]]]]
"""Condition → method → seed → rows, in the order of the recordings."""


def means(records: Sequence[Result], columns: dict[str, str]) -> list[str]:
    """Return a Markdown table with a row per condition and method: mean ± standard deviation over seeds."""
    conditions = sorted(dict.fromkeys(r.condition for r in records), key=lambda c: c != "clean")
    digits = [1 if field.startswith("median") else 3 for field in columns.values()]
    lines = []
    for condition in conditions:
        for method in METHODS:
            own = [r for r in records if (r.method, r.condition) == (method, condition)]
            numbers = [[getattr(r, field) for r in own] for field in columns.values()]
            if own and any(value == value for values in numbers for value in values):
                lines.append([condition, method, str(len(own)), *map(cell, numbers, digits)])
    return markdown(["recordings", "method", "seeds", *columns], lines)


def costs(records: Sequence[Result]) -> list[str]:
    """Return a Markdown table of what a run trains, what it chose, and what it costs."""
    lines = []
    for method in METHODS:
        own = [r for r in records if (r.method, r.condition) == (method, "clean")]
        if own:
            fields = ("parameters", "samples", "train_seconds", "seconds", "temperature", "validation_nll")
            chosen = " / ".join(dict.fromkeys(f"{r.rate:g}, {r.weight:g}" for r in own if r.rate == r.rate)) or "–"
            numbers = ([float(getattr(r, field)) for r in own] for field in fields)
            pool = " / ".join(dict.fromkeys(f"{r.pool:g}" for r in own if r.pool == r.pool)) or "–"
            lines.append([method, *(cell(values) for values in numbers), chosen, pool])
    head = ["method", "trained", "draws", "s of training", "s per condition", "T", "validation NLL"]
    return markdown([*head, "rate, KL weight", "weight beside towers"], lines)


def arranged(rows: Iterable[Row]) -> Said:
    """Return rows by condition, method and seed."""
    found: Said = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        found[row.condition][row.method][row.seed].append(row)
    return found


def compare(one: dict[int, list[Row]], two: dict[int, list[Row]], measure: Measure, draws: int) -> Interval | None:
    """Return ``one − two`` with a 95 % interval over seeds and scripts; None where it cannot be said.

    A mean has the two-way interval of :func:`bayes_adapters.analysis.intervals.seeds_and_units`, an AUROC the
    pigeonhole bootstrap; scripts are resampled whole.
    """
    seeds = sorted(one.keys() & two.keys())
    if len(seeds) < 2:
        return None
    a, b = (
        torch.tensor([[[getattr(r, f) for f in measure.fields] for r in own[s]] for s in seeds], dtype=torch.float64)
        for own in (one, two)
    )
    if bool(a.isnan().any()) or bool(b.isnan().any()):
        return None
    groups = [row.group for row in one[seeds[0]]]
    if measure.mean is not None:
        scores = [torch.stack([measure.mean(own) for own in x]) for x in (a, b)]
        return grouped_difference(scores[0] - scores[1], groups)
    assert measure.whole is not None
    return pigeonhole(measure.whole, a, b, groups=groups, draws=draws, seed=0)


def differences(said: Said, draws: int = 300) -> list[str]:
    """Return a Markdown table of each method minus :data:`~examples.retrieval.methods.BASE`; p-values after Holm."""
    found = {
        (condition, method, name): compare(said[condition][method], said[condition][BASE], measure, draws)
        for condition in DIFFERENCES
        if BASE in said.get(condition, {})
        for method in METHODS
        if method != BASE and method in said[condition]
        for name, measure in MEASURES.items()
    }
    known = {key: one for key, one in found.items() if one is not None}
    adjusted = dict(zip(known, holm([one.p_value for one in known.values()]), strict=True))
    lines = []
    for condition, method in dict.fromkeys(key[:2] for key in known):
        cells = []
        for name in MEASURES:
            key = (condition, method, name)
            one = known.get(key)
            cells.append("–" if one is None else f"{signed(*one[:3])}, p {short(adjusted[key], 3)}")
        lines.append([condition, f"{method} − {BASE}", *cells])
    return markdown(["recordings", "difference", *MEASURES], lines)
