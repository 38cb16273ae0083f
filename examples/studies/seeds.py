"""Differences between methods over training seeds, and over seeds and test units, from the records in ``results/``.

    python -m examples.studies.seeds

The intervals of the studies resample units (scripts, people or dialogues) and hold the R training seeds fixed. With the
seeds as the replicates each gives one difference ``d_k``, and the interval is Student's: ``mean(d) ± t · sd(d) / √R``
with ``R − 1`` degrees of freedom. Both together, by the two-way model ``d[s, u] = δ + a_s + b_u + e_su``::

    Var(d̄) = σ_seed² / R + σ_unit² / n + σ_both² / (R n)
    V = V_seed + V_unit,   V_seed = sd(d)² / R,   V_unit = (half-width of the interval over units / 1.96)²
    ν = V² / (V_seed² / (R − 1)),   d̄ ± t_ν √V                                          Satterthwaite

V_seed estimates ``σ_seed² / R + σ_both² / (R n)`` and V_unit ``σ_unit² / n + σ_both² / (R n)``: V counts the last term
twice, so the interval is rather too wide. (It needs no predictions, as :func:`bayes_adapters.analysis.intervals` does,
which counts it once.) Nor is it, or its p-value, ever taken below that of the seeds alone, which more degrees of
freedom could do. The half-width over units is the wider side of the published interval. The body signals' seeds are
folds of people: each person is tested once, so that their interval is already over both.

The p-values of the table are over both, adjusted for its number of differences (Holm). It goes between the markers
``seeds`` of ``docs/claims.md``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any, NamedTuple

from bayes_adapters import student
from bayes_adapters.analysis.intervals import holm
from bayes_adapters.errors import DataError
from examples.studies.comparison import markdown, rewrite_file, short
from examples.studies.user_errors import user_errors


class Pair(NamedTuple):
    """A published difference ``method − other``.

    Args:
        results: name of the file of records, without ``.json``.
        method, other: names of methods.
        condition: of the records.
        metric: a field of the records.
        heading: how the table calls the metric.
        units: ends of the published 95 % interval over units; None where the replicates are folds of units.
    """

    results: str
    method: str
    other: str
    condition: str
    metric: str
    heading: str
    units: tuple[float, float] | None = None


# Those under noise have the width that the same two methods have over scripts when they are trained anew, with the same
# seeds, on frames of the library's own resampler (examples.studies.verify_prompts.controls).
PAIRS = (
    Pair("verify_prompts", "caliber-x", "lora-fusion", "clean", "auc", "clean AUC", (-0.021, 0.030)),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "hard", "auc", "hard AUC", (0.033, 0.104)),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "white@-5", "auc", "white −5 dB AUC", (-0.050, -0.000)),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "white@-5", "nll", "white −5 dB NLL", (0.051, 0.126)),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "babble@-5", "auc", "babble −5 dB AUC", (-0.065, 0.010)),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "babble@-5", "nll", "babble −5 dB NLL", (-0.004, 0.068)),
    Pair("verify_prompts", "caliber-x", "caliber-g", "hard", "auc", "hard AUC", (0.012, 0.071)),
    Pair("verify_prompts", "coco-lora", "caliber-x", "hard", "auc", "hard AUC", (-0.066, -0.000)),
    Pair("verify_prompts", "cola", "concat-lora", "clean", "auc", "clean AUC", (0.270, 0.391)),
    Pair("verify_prompts", "cola", "lora-fusion", "clean", "auc", "clean AUC", (-0.103, -0.047)),
    Pair("verify_prompts", "cola", "lora-fusion", "babble@-5", "auc", "babble −5 dB AUC", (0.001, 0.077)),
    Pair("verify_prompts", "bayesian-cola", "cola", "clean", "auc", "clean AUC", (-0.017, 0.018)),
    Pair("verify_prompts", "bayesian-cola", "cola", "hard", "nll", "hard NLL", (-0.086, -0.046)),
    Pair("verify_prompts", "bayesian-cola", "cola", "ood-es", "nll", "Spanish NLL", (-0.159, -0.082)),
    Pair("meld", "scalabl", "lora", "clean", "nll", "NLL", (-0.009, -0.001)),
    Pair("meld", "ensemble", "lora", "clean", "nll", "NLL", (-0.026, -0.016)),
    Pair("meld", "ensemble", "lora", "clean", "accuracy", "accuracy", (0.003, 0.016)),
    Pair("meld", "ensemble", "lora", "clean", "brier", "Brier", (-0.017, -0.010)),
    Pair("meld", "bayeslora-2026-pruned", "lora", "clean", "nll", "NLL", (-0.005, 0.017)),
    Pair("speaking_time", "bayeslora-2025", "lora", "test", "nll", "NLL", (0.007, 0.025)),
    Pair("speaking_time", "bayeslora-2026-kl-3e-5", "bayeslora-2026-kl-0", "test", "rmse", "RMSE", (0.012, 0.027)),
    Pair("speaking_time", "bayeslora-2026-kl-3e-5", "lora-2026-ranks-3e-5", "test", "rmse", "RMSE", (0.013, 0.031)),
    Pair("body_signals", "wander", "concat-lora", "all", "auc", "AUC"),
    Pair("body_signals", "bayesian-wander", "wander-sum-of-products", "all", "nll", "NLL"),
)
"""The differences that ``docs/claims.md`` and ``README.md`` rest on."""
_MANY = 1e6
"""Degrees of freedom of a variance that is as good as known."""


class Difference(NamedTuple):
    """Mean difference over R seeds, its 95 % intervals, and the p-value of no difference.

    Args:
        mean: d̄.
        over_seeds: half-width of the interval over seeds.
        over_both: half-width of the interval over seeds and units.
        seeds: R.
        p_value: of d̄ = 0 over both, two-sided, by Student's t.
    """

    mean: float
    over_seeds: float
    over_both: float
    seeds: int
    p_value: float

    @property
    def includes_zero(self) -> bool:
        """Whether the interval over seeds and units does."""
        return abs(self.mean) <= self.over_both


def difference(records: Sequence[Mapping[str, Any]], pair: Pair) -> Difference:
    """Return the difference of ``pair`` over the seeds that both methods have.

    Args:
        records: as in ``results/*.json``: ``method``, ``seed``, ``condition`` and metrics.
        pair: which difference.

    Raises:
        DataError: fewer than two common seeds.

    >>> rows = [dict(method=m, seed=s, condition="clean", nll=v) for m, s, v in
    ...         [("a", 0, 1.0), ("a", 1, 3.0), ("b", 0, 0.0), ("b", 1, 1.0)]]
    >>> found = difference(rows, Pair("", "a", "b", "clean", "nll", "NLL"))
    >>> found.mean, round(found.over_seeds, 3), found.includes_zero  # d = 1, 2; 12.706 · 0.7071 / √2
    (1.5, 6.353, True)
    >>> found = difference(rows, Pair("", "a", "b", "clean", "nll", "NLL", units=(0.7, 2.3)))
    >>> round(found.over_both, 3)  # V = 0.25 + 0.408², ν = 2.78: 3.33 · 0.645 = 2.15, less than over seeds alone
    6.353
    """
    one, two = (
        {r["seed"]: r[pair.metric] for r in records if r["method"] == m and r["condition"] == pair.condition}
        for m in (pair.method, pair.other)
    )
    values = [one[seed] - two[seed] for seed in sorted(one.keys() & two.keys())]
    if len(values) < 2:
        raise DataError(
            f"{pair.method} − {pair.other} has {len(values)} common seeds under {pair.condition!r}; an interval needs "
            "two or more. Were both methods measured with the same seeds?"
        )
    mean, dof = fmean(values), len(values) - 1.0
    of_seeds = variance(values) / len(values)
    of_units = 0.0
    if pair.units is not None:
        low, high = pair.units
        of_units = (max(mean - low, high - mean) / student.normal(0.95)) ** 2
    both = of_seeds + of_units
    both_dof = min(_MANY, dof * (both / of_seeds) ** 2) if of_seeds else _MANY
    over_seeds, p_of_seeds = _student(mean, of_seeds, dof)
    over_both, p_of_both = _student(mean, both, both_dof)
    return Difference(mean, over_seeds, max(over_seeds, over_both), len(values), max(p_of_seeds, p_of_both))


def _student(mean: float, variance_of_mean: float, dof: float) -> tuple[float, float]:
    """Return half the width of the 95 % interval, and the two-sided p-value of a mean of 0."""
    error = math.sqrt(variance_of_mean)
    p_value = 1 - student.within(abs(mean) / error, dof) if error else float(mean == 0)
    return student.quantile(0.95, dof) * error, p_value


def table(folder: Path) -> list[str]:
    """Return the Markdown table of :data:`PAIRS` from the records in ``folder``."""
    found = [difference(json.loads((folder / f"{p.results}.json").read_text(encoding="utf-8")), p) for p in PAIRS]
    adjusted = holm([one.p_value for one in found])
    rows = [
        [
            pair.results.replace("_", " "),
            f"{pair.method} − {pair.other}",
            pair.heading,
            f"{'' if one.mean < 0 else '+'}{short(one.mean, 3)} ± {short(one.over_seeds, 3)}",
            f"± {short(one.over_both, 3)}",
            "yes" if one.includes_zero else "no",
            short(p, 3),
        ]
        for pair, one, p in zip(PAIRS, found, adjusted, strict=True)
    ]
    heading = ["study", "difference", "metric", "over seeds", "over seeds and units", "includes zero", "p (Holm)"]
    return markdown(heading, rows)


@user_errors
def main() -> int:
    """Rewrite the table of ``docs/claims.md``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--page", type=Path, default=Path("docs/claims.md"))
    arguments = parser.parse_args()
    rewrite_file(arguments.page, {"seeds": table(arguments.results)})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
