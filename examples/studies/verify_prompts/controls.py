"""CALIBER on top of late fusion against late fusion with a temperature: NLL over seeds and scripts together.

    python -m examples.studies.verify_prompts.controls --runs runs/results

reads the predictions that :mod:`examples.studies.verify_prompts.results` has left in the folder of its runs, and writes
the tables between the markers ``verify_prompts_controls`` and ``verify_prompts_process`` (late fusion with a Gaussian
process) of ``docs/results/script-verification.md``. ``corrupted`` is
the mean over noise of all levels, missing audio, reverberation and clipping; ``foreign`` that over four languages, all
of whose answers are "no". Intervals are over training seeds and what the recordings say; p-values are adjusted for all
cells of a table (Holm).
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bayes_adapters.analysis.intervals import Interval, holm
from bayes_adapters.errors import DataError
from examples.studies.comparison import grouped_difference, markdown, rewrite_file, short, signed
from examples.studies.rows import read_rows
from examples.studies.user_errors import user_errors
from examples.studies.verify_prompts.predictions import Pair, Prediction, resampled_together
from examples.studies.verify_prompts.report import CONDITIONS

APART = ("clean", "hard")
FOREIGN = tuple(c for c in CONDITIONS if c.startswith("ood-"))
COLUMNS: dict[str, tuple[str, ...]] = {
    "clean": ("clean",),
    "corrupted": tuple(c for c in CONDITIONS if c not in (*APART, *FOREIGN)),
    "hard": ("hard",),
    "foreign": FOREIGN,
}
"""Heading → conditions, over which a recording's NLL is averaged."""
TEMPERATURE = "lora-fusion-temperature"
PAIRS = (
    ("caliber-x-fusion-tuned", TEMPERATURE),
    ("caliber-x-fusion-fitted", TEMPERATURE),
    ("caliber-x-fusion-temperature", TEMPERATURE),
    ("caliber-x-fusion", TEMPERATURE),
    ("caliber-x", TEMPERATURE),
    ("cross-attention-fusion", TEMPERATURE),
    ("cross-attention", TEMPERATURE),
    ("caliber-x-fusion-fitted", "caliber-x-fusion"),
    ("caliber-x-fusion-tuned", "cross-attention-fusion"),
    ("caliber-x-fusion", "cross-attention-fusion"),
    ("caliber-x", "cross-attention"),
)
"""(method, what it is compared with)."""
TABLES = {"verify_prompts_controls": PAIRS, "verify_prompts_process": (("process-fusion", TEMPERATURE),)}
"""Marker of a table → what is compared in it."""
Losses = Mapping[tuple[str, int], Mapping[str, Mapping[Pair, float]]]
"""(method, seed) → condition → pair → NLL, nats."""


def losses(rows: Sequence[Prediction]) -> Losses:
    """Return the NLL of every prediction."""
    found: dict[tuple[str, int], dict[str, dict[Pair, float]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        of_label = row.probability if row.label == 1 else 1 - row.probability
        key = (row.recording, row.script, row.label)
        found[row.method, row.seed][row.condition][key] = -math.log(max(of_label, 1e-7))
    return found


def difference(said: Losses, one: str, two: str, conditions: Sequence[str]) -> Interval:
    """Return the NLL of ``one`` minus that of ``two``, averaged over ``conditions`` with equal weights.

    Raises:
        DataError: fewer than two seeds have both.
    """
    seeds = sorted({s for m, s in said if m == one} & {s for m, s in said if m == two})
    if len(seeds) < 2:
        raise DataError(f"{one} and {two} have {len(seeds)} seeds in common; an interval needs two or more.")
    columns: list[Tensor] = []
    groups: list[str] = []
    for condition in conditions:
        pairs = list(said[one, seeds[0]][condition])
        table = [[said[one, s][condition][p] - said[two, s][condition][p] for p in pairs] for s in seeds]
        # Conditions have equal weights, whatever the number of their pairs.
        columns.append(torch.tensor(table, dtype=torch.float64) / len(pairs))
        groups += resampled_together(pairs)
    whole = torch.cat(columns, 1)
    return grouped_difference(whole * whole.shape[1] / len(conditions), groups)


def table(rows: Sequence[Prediction], compared: Sequence[tuple[str, str]] = PAIRS) -> list[str]:
    """Return the Markdown table of ``compared``, of those pairs of methods that were measured."""
    said = losses(rows)
    measured = {method for method, _ in said}
    pairs = [pair for pair in compared if set(pair) <= measured]
    found = [[difference(said, one, two, conditions) for conditions in COLUMNS.values()] for one, two in pairs]
    adjusted = iter(holm([cell.p_value for row in found for cell in row]))
    lines = [
        [f"{one} − {two}", *(f"{signed(*cell[:3])}, p {short(next(adjusted), 3)}" for cell in row)]
        for (one, two), row in zip(pairs, found, strict=True)
    ]
    return markdown(["NLL, nats", *COLUMNS], lines)


@user_errors
def main() -> int:
    """Rewrite the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/results"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/script-verification.md"))
    arguments = parser.parse_args()
    names = {name for pairs in TABLES.values() for pair in pairs for name in pair}
    paths = sorted(path for name in names for path in arguments.runs.glob(f"{name}-[0-9]*.csv"))
    rows = [row for path in paths for row in read_rows(path, Prediction)]
    rewrite_file(arguments.page, {marker: table(rows, pairs) for marker, pairs in TABLES.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
