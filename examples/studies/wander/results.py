"""Every variant on every task × seeds; each run is written as it finishes, and a second call continues.

    python -m examples.studies.wander.results --data windows.npz --seeds 5 --jobs 2
    python -m examples.studies.wander.results --data windows.npz --only stress matched --page docs/results/wander.md

A row is ``task.variant``. On body signals a seed is a fold of people and the encoders' initialisation, and seeds 0 … 4
test every person once; on scripts it is that of training. Encoders of body signals are pre-trained first, once a fold.
Records go to ``results/wander_ablation.json``, runs and what was said of every example to ``runs/wander/``; ``--page``
puts the tables between that file's markers ``wander_answers``, ``wander_means``, ``wander_gradients``,
``wander_streams``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bayes_adapters.analysis.records import read_records, write_records
from bayes_adapters.errors import ConfigError
from examples.studies.body_signals.data import default_path, load
from examples.studies.comparison import rewrite_file
from examples.studies.grid import Grid, claim_folder, run_grid
from examples.studies.rows import read_rows, write_rows
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.wander import tables
from examples.studies.wander.body import STREAMS, Body
from examples.studies.wander.experiment import evaluate
from examples.studies.wander.problems import Problem, Settings
from examples.studies.wander.records import Result, Row
from examples.studies.wander.script import SETTINGS, Script
from examples.studies.wander.training import train
from examples.studies.wander.variants import TASKS, VARIANTS, rows

PRETRAIN = "pretrain"
SCRIPT = "script"
COSTS = Path("results/wander_cost.json")
SEARCHED = 0
"""The seed with which learning rates are searched."""


def problem(task: str, seed: int, data: Path | None) -> Problem:
    """Load a task; ``data`` is the file of windows."""
    if task == SCRIPT:
        return Script(task, SETTINGS, corpus=Corpus.load(languages=("en",)))
    return Body.load(task, seed, data)


def run_one(method: str, seed: int, data: Path | None, runs: Path) -> None:
    """Train and measure one row with one seed; ``pretrain`` instead fills the cache with a fold's seven encoders."""
    if method == PRETRAIN:
        Body.load("stress-7", seed, data)
        write_records(runs / f"{method}-{seed}.json", [])
        return
    task, name = tables.split(method)
    own, variant = problem(task, seed, data), VARIANTS[name]
    fitted = train(own, variant, seed, None if seed == SEARCHED else [chosen_rate(method, runs)])
    records, said = evaluate(own, variant, fitted, method, seed)
    write_rows(runs / f"{method}-{seed}.csv", Row, said)
    write_records(runs / f"{method}-{seed}.json", records)


def chosen_rate(method: str, runs: Path) -> float:
    """Return the learning rate that the first seed's run chose.

    Raises:
        ConfigError: that run has not finished.
    """
    path = runs / f"{method}-{SEARCHED}.json"
    if not path.is_file():
        raise ConfigError(
            f"Learning rates are searched with seed {SEARCHED} and kept for the others, and {path} is not there. Run "
            f"--one {method} {SEARCHED} first; the grid runs it first."
        )
    records: list[Result] = read_records(path, Result)
    return records[0].rate


class WanderAblation(Grid[Result]):
    """Every variant of Wander × seeds."""

    module = "examples.studies.wander.results"
    description = __doc__
    methods, option = tuple(rows()), "--variants"
    record = Result
    runs, out = Path("runs/wander"), Path("results/wander_ablation.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the data, a choice by task, and where the tables go."""
        parser.add_argument("--data", type=Path, help="windows; default: body_signals/windows.npz in the cache")
        parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), help="tasks to run")
        parser.add_argument("--page", type=Path, help="a file with the markers of the tables")

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and measure one row with one seed."""
        run_one(method, seed, arguments.data, arguments.runs)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and read what the chosen rows need: a file that is missing is one error, not one a run."""
        arguments.methods = [m for m in arguments.methods if tables.split(m)[0] in arguments.only]
        chosen = {tables.split(method)[0] for method in arguments.methods}
        data = arguments.data or default_path()
        if chosen & set(STREAMS):
            load(data)
        if SCRIPT in chosen:
            Corpus.load(languages=("en",))
        digest = hashlib.sha256(data.read_bytes()).hexdigest() if data.is_file() else ""
        if chosen:
            claim_folder(arguments.runs, Settings(), data=digest, script=asdict(SETTINGS), searched=SEARCHED)
        return ["--data", str(data)]

    def run(self, arguments: argparse.Namespace, passed: Sequence[str]) -> int:
        """Pre-train the encoders of each fold, then run what is not done yet."""
        seeds, failures = range(arguments.seeds), 0
        if {tables.split(method)[0] for method in arguments.methods} & set(STREAMS):
            jobs = arguments.jobs
            failures = run_grid(self.module, [PRETRAIN], seeds, arguments.runs, jobs=jobs, arguments=passed)
        return failures or super().run(arguments, passed)

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Print the answers, and write all tables into the page."""
        said = (row for path in predictions for row in read_rows(path, Row))
        answers = tables.answers(said, records)
        print("\n".join([*tables.means(records), "", *answers]))
        if arguments.page:
            cost = json.loads(COSTS.read_text()) if COSTS.is_file() else {}
            rewrite_file(
                arguments.page,
                {
                    "wander_answers": answers,
                    "wander_means": tables.means(records),
                    "wander_gradients": tables.gradients(records),
                    "wander_streams": tables.streams(records, cost),
                },
            )


if __name__ == "__main__":
    raise SystemExit(WanderAblation().main())
