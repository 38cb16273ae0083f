"""What the runs say, over all seeds: means, differences on the same scripts, and where the variance grows.

Intervals are from resampling whole scripts: they reflect the choice of test scripts, and of texts of other kinds, not
of training seeds.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.analysis.bootstrap import PairedDifference
from examples.studies.comparison import Metric, Outputs, difference_table, markdown, mean_table, paired_differences
from examples.studies.speaking_time.intervals import Interval, resampled, spearman, variance_ratio
from examples.studies.speaking_time.records import TEST, Result, Row

COLUMNS: dict[str, tuple[str, str]] = {
    "trained": (TEST, "parameters"),
    "ranks": (TEST, "ranks"),
    "bytes": (TEST, "bytes"),
    "RMSE": (TEST, "rmse"),
    "NLL": (TEST, "nll"),
}
"""Heading → condition and metric; ``trained`` counts numbers."""

METRICS: dict[str, Metric] = {"RMSE": lambda rows: rows[:, 0].square().mean().sqrt(), "NLL": lambda rows: rows[:, 1]}
"""Metric of rows (error, nll) of test scripts."""

COMPARISONS: tuple[tuple[str, tuple[str, ...] | None], ...] = (
    ("lora", None),
    ("lora-2026", ("bayeslora-2026-kl-0", "lora-2026-ranks-3e-5", "lora-2026-ranks-1e-4")),
    ("bayeslora-2026-kl-0", ("bayeslora-2026-kl-3e-5", "bayeslora-2026-kl-1e-4")),
    ("lora-2026-ranks-3e-5", ("bayeslora-2026-kl-3e-5",)),
    ("lora-2026-ranks-1e-4", ("bayeslora-2026-kl-1e-4",)),
)
"""Reference, and what is compared with it (None: everything)."""


def differences(rows: Sequence[Row], draws: int = 1000) -> list[tuple[str, dict[str, dict[str, PairedDifference]]]]:
    """Return (reference, method → metric → method minus reference) for what has been measured of :data:`COMPARISONS`.

    A metric is computed for each seed and averaged over the seeds that both have.
    """
    said: dict[str, Any] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        if r.condition == TEST:
            said[r.method][r.seed][r.key, r.group] = (r.mean - r.log_seconds, r.nll)
    found = []
    for reference, wanted in COMPARISONS:
        outputs: dict[str, Outputs] = {m: own for m, own in said.items() if m == reference or m in (wanted or said)}
        if {reference} < set(outputs):
            found.append(
                (reference, paired_differences(outputs, reference, METRICS, group=lambda key: key[1], draws=draws))
            )
    return found


def variances(rows: Sequence[Row], draws: int = 1000) -> dict[str, dict[str, Interval]]:
    """Return method → heading → value and interval, for methods whose draws differ; each is a mean over seeds.

    Headings are ``error`` and ``length``, Spearman's ρ of the variance and absolute error or characters, and the kinds
    of texts, the mean variance on which is divided by that on the test scripts.
    """
    said: dict[str, Any] = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for r in rows:
        said[r.method][r.condition][r.key, r.group][r.seed] = (abs(r.mean - r.log_seconds), r.characters, r.variance)
    found: dict[str, dict[str, Interval]] = {}
    for method, by_kind in said.items():
        parts = {kind: _sample(texts) for kind, texts in by_kind.items()}
        test = parts.pop(TEST)
        if bool((test[0][..., 2] > 0).all()):
            own = {name: resampled(_correlation(column), test, draws=draws) for column, name in enumerate(_CORRELATED)}
            found[method] = own | {kind: resampled(_ratio, part, test, draws=draws) for kind, part in parts.items()}
    return found


_CORRELATED = ("error", "length")


def _sample(texts: dict[tuple[str, str], dict[int, tuple[float, ...]]]) -> tuple[Tensor, list[str]]:
    """Numbers of shape (N, seeds, 3), and the N scripts."""
    values = torch.tensor([[own[seed] for seed in sorted(own)] for own in texts.values()], dtype=torch.float64)
    return values, [script for _, script in texts]


def _correlation(column: int) -> Any:
    return lambda values: fmean(spearman(own[:, column], own[:, 2]) for own in values.unbind(1))


def _ratio(there: Tensor, here: Tensor) -> float:
    pairs = zip(there.unbind(1), here.unbind(1), strict=True)
    return fmean(variance_ratio(a[:, 2], b[:, 2]) for a, b in pairs)


def tables(records: Sequence[Result], rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return marker → table; a table of which nothing has been measured is left out."""
    found = {"speaking_time": mean_table(records, COLUMNS, "method", reference=TEST)}
    if compared := differences(rows):
        parts = [difference_table(intervals, reference) for reference, intervals in compared]
        found["speaking_time_differences"] = parts[0][:2] + [line for part in parts for line in part[2:]]
    if spread := variances(rows):
        kinds = [kind for kind in next(iter(spread.values())) if kind not in _CORRELATED]
        heads = ["method", "ρ(variance, abs. error)", "ρ(variance, characters)", *(f"variance × on {k}" for k in kinds)]
        body = [
            [name, *(_signed(own[c]) for c in _CORRELATED), *(_plain(own[kind]) for kind in kinds)]
            for name, own in spread.items()
        ]
        found["speaking_time_variance"] = markdown(heads, body)
    return found


def _signed(found: Interval) -> str:
    value, low, high = (f"{v:+.2f}".replace("0.", ".").replace("-", "−") for v in found)
    return "–" if math.isnan(found[0]) else f"{value} [{low}, {high}]"


def _plain(found: Interval) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"
