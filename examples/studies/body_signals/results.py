"""All methods over several seeds; each run is written as it finishes, and a second call continues.

    python -m examples.studies.body_signals.results --data windows.npz --seeds 5 --jobs 2

A seed is a fold of people and the initialisation of the encoders: seeds 0 … 4 test every person once. Encoders are
pre-trained first, once per seed. Records go to ``results/body_signals.json``, single runs and what was said about every
window to ``runs/body_signals/``; ``--page docs/results/body-signals.md`` also puts the two tables between the markers
``body_signals`` and ``body_signals_differences`` of that file.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from bayes_adapters.analysis.records import Record, write_records
from examples.studies.body_signals.adapters import ADAPTED, AdapterSettings, train
from examples.studies.body_signals.data import default_path, load
from examples.studies.body_signals.differences import REFERENCE, differences
from examples.studies.body_signals.experiment import CONDITIONS, evaluate
from examples.studies.body_signals.methods import METHODS, fit
from examples.studies.body_signals.records import Row
from examples.studies.body_signals.task import Settings, Task
from examples.studies.comparison import difference_table, mean_table, rewrite_file
from examples.studies.grid import Grid, claim_folder, run_grid
from examples.studies.rows import read_rows, write_rows

PRETRAIN = "pretrain"
EVERY = (*METHODS, *ADAPTED)


def run_one(method: str, seed: int, settings: Settings, data: Path, runs: Path) -> None:
    """Fit and measure one method with one seed; ``pretrain`` instead fills the cache and writes the fold."""
    task = Task.load(data, seed, settings)
    if method == PRETRAIN:
        (runs / f"fold-{seed}.json").write_text(task.fold.to_json() + "\n")
        write_records(runs / f"{method}-{seed}.json", [])
        return
    fitted = train(method, task, seed) if method in ADAPTED else fit(method, task, settings)
    records, rows = evaluate(fitted, task, method, seed)
    write_rows(runs / f"{method}-{seed}.csv", Row, rows)
    write_records(runs / f"{method}-{seed}.json", records)


def summary(records: Sequence[Record]) -> list[str]:
    """Return lines ``method condition seeds AUC NLL ECE``: means over seeds, in the order of the records."""
    lines = [f"{'method':14} {'condition':13} seeds   AUC   NLL   ECE"]
    for method in dict.fromkeys(r.method for r in records):
        for condition in CONDITIONS:
            own = [r for r in records if (r.method, r.condition) == (method, condition)]
            if own:
                means = [fmean(getattr(r, metric) for r in own) for metric in ("auc", "nll", "ece")]
                lines.append(f"{method:14} {condition:13} {len(own):5} " + " ".join(f"{v:5.3f}" for v in means))
    return lines


COLUMNS: dict[str, tuple[str, str]] = {
    "trained": ("all", "parameters"),
    "AUC": ("all", "auc"),
    "NLL": ("all", "nll"),
    "ECE": ("all", "ece"),
    "AUC, 1 withheld": ("without-1", "auc"),
    "2 withheld": ("without-2", "auc"),
    "3 withheld": ("without-3", "auc"),
    "4 withheld": ("without-4", "auc"),
    "NLL, 4 withheld": ("without-4", "nll"),
}
"""Heading → condition and metric, mean ± standard deviation over folds of people; ``trained`` counts numbers."""


def tables(records: Sequence[Record], paths: Sequence[Path], folds: int) -> dict[str, list[str]]:
    """Return marker → table: means over folds, and differences from concat-LoRA when a whole partition is done.

    Args:
        records: of all runs.
        paths: of their predictions.
        folds: of a partition of the people.
    """
    found = {"body_signals": mean_table(records, COLUMNS, "method", reference="all")}
    if {REFERENCE} < {record.method for record in records}:
        intervals = differences((row for path in paths for row in read_rows(path, Row)), folds)
        if intervals:
            found["body_signals_differences"] = difference_table(intervals, REFERENCE)
    return found


class BodySignals(Grid[Record]):
    """Every method on the body signals × folds of people."""

    module = "examples.studies.body_signals.results"
    description = __doc__
    methods = EVERY
    runs, out = Path("runs/body_signals"), Path("results/body_signals.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the data and where the tables go."""
        parser.add_argument("--data", type=Path, help="windows; default: body_signals/windows.npz in the cache")
        parser.add_argument("--page", type=Path, help="a file with the markers body_signals, body_signals_differences")

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Fit and measure one method with one seed."""
        run_one(method, seed, Settings(), arguments.data or default_path(), arguments.runs)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder for these data; a file that cannot be used is one error here, not one per run."""
        data = arguments.data or default_path()
        load(data)
        digest = hashlib.sha256(data.read_bytes()).hexdigest()
        weights = {name: method.kl_weight for name, method in ADAPTED.items()}
        claim_folder(arguments.runs, Settings(), data=digest, adapters=vars(AdapterSettings()), kl_weights=weights)
        return ["--data", str(data)]

    def run(self, arguments: argparse.Namespace, passed: Sequence[str]) -> int:
        """Pre-train the encoders of each fold, then run what is not done yet."""
        seeds, jobs = range(arguments.seeds), arguments.jobs
        failures = run_grid(self.module, [PRETRAIN], seeds, arguments.runs, jobs=jobs, arguments=passed)
        return failures or super().run(arguments, passed)

    def report(self, arguments: argparse.Namespace, records: list[Record], predictions: list[Path]) -> None:
        """Print the means, and write the tables into the page."""
        print("\n".join(summary(records)))
        if arguments.page:
            rewrite_file(arguments.page, tables(records, predictions, Settings().folds))


if __name__ == "__main__":
    raise SystemExit(BodySignals().main())
