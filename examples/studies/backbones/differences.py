"""Which method wins on which encoders: differences of NLL over folds and scripts together.

A fold is another set of scripts to train on, another one to test on, and another seed; a script is tested in one fold.
Of a difference between two methods, ``d[f, u]`` of script u in fold f, the model is ``δ + a_f + e_fu``. With R folds of
n_f scripts, ``m_f`` their means and ``s_f²`` their variances::

    d̄ = Σ_f m_f / R,    Var(d̄) = σ_fold² / R + Σ_f σ_f² / (n_f R²)
    V_folds = Σ_f (m_f − d̄)² / (R (R − 1)),    V_scripts = Σ_f s_f² / (n_f R²)
    V = max(V_folds, V_scripts),    d̄ ± t_ν √V

V_folds estimates the whole of Var(d̄), whatever folds and scripts do, with ν = R − 1. V_scripts estimates its second
part, and is the better number where folds do not differ beyond their scripts: ν is then Satterthwaite's,
``V² / Σ_f ((s_f² / (n_f R²))² / (n_f − 1))``. The larger one is taken, so V is rather too large. Training sets of two
folds overlap, which no such variance knows of (Bengio and Grandvalet 2004).

Both methods have a temperature, fitted on validation scripts. p-values are adjusted (Holm) for all differences of
:data:`PAIRS`, of all cells and all columns, so that the winner of a cell may be picked by its mean.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import NamedTuple

from bayes_adapters import student
from bayes_adapters.analysis.intervals import holm
from bayes_adapters.errors import DataError
from examples.studies.backbones.encoders import CELLS
from examples.studies.backbones.experiment import CONDITIONS, TEMPERATURE
from examples.studies.comparison import markdown, short, signed
from examples.studies.verify_prompts.controls import Losses, losses
from examples.studies.verify_prompts.predictions import Prediction, resampled_together

COLUMNS: dict[str, tuple[str, ...]] = {
    "clean": ("clean",),
    "corrupted": ("white@-5", "babble@-5", "missing"),
    "hard": ("hard",),
    "foreign": tuple(c for c in CONDITIONS if c.startswith("ood-")),
}
"""Heading → conditions, which count alike."""
FUSION, POSTERIOR, NETWORK = "lora-fusion", "caliber-x", "cross-attention"
METHODS = ("caliber-g", POSTERIOR, "caliber-shared-kv", NETWORK)
PAIRS = (*((method, FUSION) for method in METHODS), (POSTERIOR, NETWORK))
"""(method, what it is compared with): late fusion, and CALIBER-X with itself without a posterior."""


class Difference(NamedTuple):
    """NLL of ``method`` minus that of ``other``, nats, both with a temperature.

    Args:
        cell: name of the encoders.
        method, other: what is compared.
        column: of :data:`COLUMNS`.
        difference: d̄.
        low, high: ends of its 95 % interval over folds and scripts.
        p_value: of d̄ = 0, two-sided, not adjusted.
        folds: R.
    """

    cell: str
    method: str
    other: str
    column: str
    difference: float
    low: float
    high: float
    p_value: float
    folds: int


def over_folds(folds: Sequence[Sequence[float]]) -> tuple[float, float, float, float]:
    """Return d̄, the ends of its 95 % interval, and the p-value of 0; see the module.

    Args:
        folds: d of each script, fold by fold.

    Raises:
        DataError: fewer than two folds, or a fold of fewer than two scripts.

    >>> [round(v, 3) for v in over_folds([[0.0, 2.0], [2.0, 4.0], [4.0, 6.0]])]  # 3 ± 4.303 · √(4/3): folds differ
    [3.0, -1.968, 7.968, 0.122]
    >>> [round(v, 3) for v in over_folds([[0.0, 2.0], [0.0, 2.0], [0.0, 2.0]])]  # 1 ± 3.182 · √(1/3): scripts do, ν = 3
    [1.0, -0.837, 2.837, 0.182]
    """
    if len(folds) < 2 or min(map(len, folds)) < 2:
        raise DataError(
            f"There are {len(folds)} folds, of {', '.join(str(len(fold)) for fold in folds) or 'no'} scripts; an "
            "interval needs two folds or more, and two scripts or more in each."
        )
    means = [fmean(fold) for fold in folds]
    mean, count = fmean(means), len(folds)
    parts = [variance(fold) / len(fold) / count**2 for fold in folds]
    of_folds, of_scripts = variance(means) / count, sum(parts)
    dof = count - 1.0
    if of_scripts > of_folds:
        dof = of_scripts**2 / sum(part**2 / (len(fold) - 1) for part, fold in zip(parts, folds, strict=True))
    error = math.sqrt(max(of_folds, of_scripts))
    half = student.quantile(0.95, dof) * error
    p_value = 1 - student.within(abs(mean) / error, dof) if error else float(mean == 0)
    return mean, mean - half, mean + half, p_value


def by_script(said: Losses, one: tuple[str, int], two: tuple[str, int], conditions: Sequence[str]) -> list[float]:
    """Return the difference of each script in one fold, whose mean is that over ``conditions`` with equal weights."""
    sums: dict[str, float] = defaultdict(float)
    for condition in conditions:
        a, b = said[one][condition], said[two][condition]
        if a.keys() != b.keys():
            raise DataError(f"{one[0]} and {two[0]} were tested on different pairs in fold {one[1]}, {condition!r}.")
        pairs = list(a)
        for pair, script in zip(pairs, resampled_together(pairs), strict=True):
            sums[script] += (a[pair] - b[pair]) / len(pairs) / len(conditions)
    return [len(sums) * value for value in sums.values()]


def differences(rows: Sequence[Prediction]) -> list[Difference]:
    """Return the differences of :data:`PAIRS` in all cells that have two folds or more of both methods."""
    said = losses([row for row in rows if row.method.endswith(TEMPERATURE)])
    found: list[Difference] = []
    for cell in CELLS:
        for method, other in PAIRS:
            one, two = (f"{cell}-{name}{TEMPERATURE}" for name in (method, other))
            folds = sorted({f for m, f in said if m == one} & {f for m, f in said if m == two})
            if len(folds) < 2:
                continue
            for column, conditions in COLUMNS.items():
                values = over_folds([by_script(said, (one, f), (two, f), conditions) for f in folds])
                found.append(Difference(cell, method, other, column, *values, len(folds)))
    return found


def write(path: Path, found: Sequence[Difference]) -> None:
    """Write differences as JSON."""
    path.write_text(json.dumps([one._asdict() for one in found], indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[Difference]:
    """Read what :func:`write` wrote."""
    return [Difference(**one) for one in json.loads(path.read_text(encoding="utf-8"))]


def tables(found: Sequence[Difference]) -> dict[str, list[str]]:
    """Return marker → lines: who wins in each cell, and all differences."""
    adjusted = dict(zip(found, holm([one.p_value for one in found]), strict=True))
    cells = list(dict.fromkeys(one.cell for one in found))
    wins: list[list[str]] = []
    rows: list[list[str]] = []
    for cell in cells:
        here = [[d for d in found if (d.cell, d.column) == (cell, column)] for column in COLUMNS]
        wins.append([CELLS[cell].title, *(_winner(of_column, adjusted) for of_column in here)])
        for method, other in PAIRS:
            own = {d.column: d for d in found if (d.cell, d.method, d.other) == (cell, method, other)}
            if own:
                title = f"{CELLS[cell].title}: {method} − {other}"
                rows.append([title, *(_entry(own[column], adjusted) for column in COLUMNS)])
    return {
        "backbones_wins": markdown(["encoders", *COLUMNS], wins) if wins else [],
        "backbones_differences": markdown(["NLL, nats", *COLUMNS], rows) if rows else [],
    }


def _winner(found: Sequence[Difference], adjusted: dict[Difference, float]) -> str:
    """Name the method with the lowest mean NLL; bold where 5 % after Holm separates it from late fusion.

    Where late fusion has the lowest one, it is separated from the second.
    """
    rivals = [one for one in found if one.other == FUSION]
    if not rivals:
        return "–"
    best = min(rivals, key=lambda one: one.difference)
    sure = "**" if adjusted[best] <= 0.05 else ""
    if best.difference < 0:
        return f"{sure}{best.method}{sure} {_entry(best, adjusted)}"
    return f"{sure}late fusion{sure}; {best.method} {_entry(best, adjusted)}"


def _entry(one: Difference, adjusted: dict[Difference, float]) -> str:
    return f"{signed(one.difference, one.low, one.high)}, p {short(adjusted[one], 3)}"
