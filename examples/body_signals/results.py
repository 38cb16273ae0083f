"""All methods over several seeds; each run is written as it finishes, and a second call continues.

    python -m examples.body_signals.results --data windows.npz --seeds 5 --jobs 2

A seed is a fold of people and the initialisation of the encoders: seeds 0 … 4 test every person once. Encoders are
pre-trained first, once a seed. Records go to ``results/body_signals.json``, single runs and what was said about every
window to ``runs/body_signals/``; ``--readme README.md`` also puts the two tables between the markers ``body_signals``
and ``body_signals_differences`` of that file.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch

from bayes_adapters.errors import BayesAdaptersError
from bayes_adapters.records import Record, write_records
from examples.body_signals.adapters import ADAPTED, AdapterSettings, train
from examples.body_signals.data import default_path, load
from examples.body_signals.differences import REFERENCE, differences
from examples.body_signals.experiment import CONDITIONS, evaluate
from examples.body_signals.methods import METHODS, fit
from examples.body_signals.records import read_rows, write_rows
from examples.body_signals.task import Settings, Task
from examples.comparison import difference_table, mean_table, rewrite
from examples.grid import claim_folder, finished, gather, grid_arguments, parse_grid, run_grid

RECORDS = Path("results/body_signals.json")
RUNS = Path("runs/body_signals")
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
    write_rows(runs / f"{method}-{seed}.csv", rows)
    write_records(runs / f"{method}-{seed}.json", records)


def run_all(methods: Sequence[str], seeds: Sequence[int], settings: Settings, data: Path, runs: Path, jobs: int) -> int:
    """Run what is not done yet, the encoders first; return the number of failures."""
    load(data)  # a file that cannot be used is one error here, not one a run
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    claim_folder(runs, settings, data=digest, adapters=vars(AdapterSettings()))
    module, arguments = "examples.body_signals.results", ["--data", str(data), "--runs", str(runs)]
    failures = run_grid(module, [PRETRAIN], seeds, runs, jobs=jobs, arguments=arguments)
    return failures or run_grid(module, methods, seeds, runs, jobs=jobs, arguments=arguments)


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
        intervals = differences((row for path in paths for row in read_rows(path)), folds)
        if intervals:
            found["body_signals_differences"] = difference_table(intervals, REFERENCE)
    return found


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="windows; default: body_signals/windows.npz in the cache")
    grid_arguments(parser, EVERY, seeds=5, runs=RUNS, out=RECORDS)
    parser.add_argument("--readme", type=Path, help="a file with the markers body_signals, body_signals_differences")
    arguments = parse_grid(parser)
    try:
        data, settings = arguments.data or default_path(), Settings()
        if arguments.one:
            run_one(arguments.one[0], int(arguments.one[1]), settings, data, arguments.runs)
            return 0
        seeds = range(arguments.seeds)
        failures = run_all(arguments.methods, seeds, settings, data, arguments.runs, arguments.jobs)
        records: list[Record] = gather(EVERY, seeds, arguments.runs, arguments.out)
        if not records:
            print(f"error: no run has finished; see the logs in {arguments.runs}", file=sys.stderr)
            return 1
        print("\n".join(summary(records)))
        if arguments.readme:
            paths = [path.with_suffix(".csv") for path in finished(EVERY, seeds, arguments.runs)]
            text = arguments.readme.read_text(encoding="utf-8")
            for name, table in tables(records, paths, settings.folds).items():
                text = rewrite(text, name, table)
            arguments.readme.write_text(text, encoding="utf-8")
    except BayesAdaptersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    else:
        return 1 if failures else 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    raise SystemExit(main())
