"""Differences between methods with the training seeds as the replicates, from the records in ``results/``.

    python -m examples.studies.seeds

The intervals of the studies resample scripts, people or dialogues and hold the training seeds fixed. Here each seed
(each fold of people, for the body signals) gives one difference ``d_k``, and the interval is Student's:
``mean(d) ± t · sd(d) / √n`` with ``n − 1`` degrees of freedom. The p-values of the table are adjusted for its number of
differences (Holm). It goes between the markers ``seeds`` of ``docs/claims.md``.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from bayes_adapters.analysis import student
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
    """

    results: str
    method: str
    other: str
    condition: str
    metric: str
    heading: str


PAIRS = (
    Pair("verify_prompts", "caliber-x", "lora-fusion", "clean", "auc", "clean AUC"),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "hard", "auc", "hard AUC"),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "white@-5", "auc", "white −5 dB AUC"),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "white@-5", "nll", "white −5 dB NLL"),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "babble@-5", "auc", "babble −5 dB AUC"),
    Pair("verify_prompts", "caliber-x", "lora-fusion", "babble@-5", "nll", "babble −5 dB NLL"),
    Pair("verify_prompts", "caliber-x", "caliber-g", "hard", "auc", "hard AUC"),
    Pair("verify_prompts", "coco-lora", "caliber-x", "hard", "auc", "hard AUC"),
    Pair("verify_prompts", "cola", "concat-lora", "clean", "auc", "clean AUC"),
    Pair("verify_prompts", "cola", "lora-fusion", "clean", "auc", "clean AUC"),
    Pair("verify_prompts", "cola", "lora-fusion", "babble@-5", "auc", "babble −5 dB AUC"),
    Pair("verify_prompts", "bayesian-cola", "cola", "clean", "auc", "clean AUC"),
    Pair("verify_prompts", "bayesian-cola", "cola", "hard", "nll", "hard NLL"),
    Pair("verify_prompts", "bayesian-cola", "cola", "ood-es", "nll", "Spanish NLL"),
    Pair("meld", "scalabl", "lora", "clean", "nll", "NLL"),
    Pair("meld", "ensemble", "lora", "clean", "nll", "NLL"),
    Pair("meld", "ensemble", "lora", "clean", "accuracy", "accuracy"),
    Pair("meld", "ensemble", "lora", "clean", "brier", "Brier"),
    Pair("meld", "bayeslora-2026-pruned", "lora", "clean", "nll", "NLL"),
    Pair("speaking_time", "bayeslora-2025", "lora", "test", "nll", "NLL"),
    Pair("speaking_time", "bayeslora-2026-kl-3e-5", "bayeslora-2026-kl-0", "test", "rmse", "RMSE"),
    Pair("speaking_time", "bayeslora-2026-kl-3e-5", "lora-2026-ranks-3e-5", "test", "rmse", "RMSE"),
    Pair("body_signals", "wander", "concat-lora", "all", "auc", "AUC"),
    Pair("body_signals", "bayesian-wander", "wander-sum-of-products", "all", "nll", "NLL"),
)
"""The differences that ``docs/claims.md`` and ``README.md`` rest on."""


class Difference(NamedTuple):
    """Mean difference over n seeds, the half-width of its 95 % interval, and the p-value of no difference."""

    mean: float
    half: float
    seeds: int
    p_value: float

    @property
    def includes_zero(self) -> bool:
        """Whether the interval does."""
        return abs(self.mean) <= self.half


def over_seeds(records: Sequence[Mapping[str, Any]], pair: Pair) -> Difference:
    """Return the difference of ``pair`` over the seeds that both methods have.

    Args:
        records: as in ``results/*.json``: ``method``, ``seed``, ``condition`` and metrics.
        pair: which difference.

    Raises:
        DataError: fewer than two common seeds.

    >>> rows = [dict(method=m, seed=s, condition="clean", nll=v) for m, s, v in
    ...         [("a", 0, 1.0), ("a", 1, 3.0), ("b", 0, 0.0), ("b", 1, 1.0)]]
    >>> found = over_seeds(rows, Pair("", "a", "b", "clean", "nll", "NLL"))
    >>> found.mean, round(found.half, 3), found.includes_zero  # d = 1, 2; 12.706 · 0.7071 / √2
    (1.5, 6.353, True)
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
    mean, error, dof = fmean(values), stdev(values) / math.sqrt(len(values)), len(values) - 1.0
    p_value = 1 - student.within(abs(mean) / error, dof) if error else float(mean == 0)
    return Difference(mean, student.quantile(0.95, dof) * error, len(values), p_value)


def table(folder: Path) -> list[str]:
    """Return the Markdown table of :data:`PAIRS` from the records in ``folder``."""
    found = [over_seeds(json.loads((folder / f"{p.results}.json").read_text(encoding="utf-8")), p) for p in PAIRS]
    adjusted = holm([difference.p_value for difference in found])
    rows = [
        [
            pair.results.replace("_", " "),
            f"{pair.method} − {pair.other}",
            pair.heading,
            f"{'' if difference.mean < 0 else '+'}{short(difference.mean, 3)} ± {short(difference.half, 3)}",
            "yes" if difference.includes_zero else "no",
            short(p, 3),
        ]
        for pair, difference, p in zip(PAIRS, found, adjusted, strict=True)
    ]
    return markdown(["study", "difference", "metric", "over seeds", "includes zero", "p (Holm)"], rows)


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
