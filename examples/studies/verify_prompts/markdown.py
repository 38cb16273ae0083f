"""Numbers and tables of the report as Markdown, and how its records and predictions are sorted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev

from bayes_adapters.analysis.records import Record
from examples.studies.verify_prompts.predictions import Prediction

Cells = Mapping[tuple[str, str], Sequence[Record]]
"""(method, condition) → its records, one per seed."""
Pairs = Mapping[tuple[str, str], Sequence[Prediction]]
"""(method, condition) → its predictions of all seeds."""


def count(n: int, what: str) -> str:
    """``n`` of ``what``, in the plural unless it is one."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def number(values: Iterable[float], digits: int = 3) -> str:
    """Mean, and ± standard deviation for several; an en dash when no value is defined."""
    defined = [v for v in values if not math.isnan(v)]
    if not defined:
        return "–"
    text = f"{fmean(defined):.{digits}f}"
    return text + (f" ± {stdev(defined):.{digits}f}" if len(defined) > 1 else "")


def mean_of(cells: Cells, method: str, condition: str, key: str) -> float:
    """Mean over seeds of one metric; NaN when it is nowhere defined."""
    values = [v for r in cells.get((method, condition), ()) if not math.isnan(v := float(getattr(r, key)))]
    return fmean(values) if values else math.nan


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of a table, with an empty line after it."""
    lines = [[c.replace("|", "\\|").replace("\n", " ") for c in row] for row in ([*head], *map(list, rows))]
    return [f"| {' | '.join(c)} |" for c in (lines[0], ["---"] * len(head), *lines[1:])] + [""]


def plain(value: float) -> str:
    """A number to three digits, or the words for NaN."""
    return "undefined or not measured" if math.isnan(value) else f"{value:.3f}"
