"""All methods over several seeds; each run is written as it finishes, and a second call continues.

    python -m examples.studies.speaking_time.results --seeds 5 --jobs 2

A seed is that of initial values, order and draws; the split of the scripts is the same in all runs. The run of a KL
weight also trains the plain LoRA with the ranks that it kept. Records go to ``results/speaking_time.json``, single runs
and what was said about every text to ``runs/speaking_time/``; ``--page docs/results/speaking-time.md`` also puts the
three tables between the markers ``speaking_time``, ``speaking_time_differences`` and ``speaking_time_variance`` of that
file.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from bayes_adapters.analysis.records import write_records
from examples.studies.comparison import rewrite_file
from examples.studies.grid import Grid, claim_folder
from examples.studies.rows import read_rows, write_rows
from examples.studies.speaking_time import bayeslora_2025, bayeslora_2026
from examples.studies.speaking_time.data import load
from examples.studies.speaking_time.experiment import LINE, QUICK, Settings, run
from examples.studies.speaking_time.records import Result, Row
from examples.studies.speaking_time.tables import tables


def run_one(method: str, seed: int, settings: Settings, runs: Path) -> None:
    """Train and measure one method with one seed, and write its predictions, then its records."""
    task = settings.task()
    part = bayeslora_2025 if method in bayeslora_2025.METHODS else bayeslora_2026
    records, rows = run(task, method, part.train, settings, seed)
    write_rows(runs / f"{method}-{seed}.csv", Row, rows)
    write_records(runs / f"{method}-{seed}.json", records)


class SpeakingTime(Grid[Result]):
    """Every method on the recorded prompts × seeds."""

    module = "examples.studies.speaking_time.results"
    record = Result
    description = __doc__
    methods = (*bayeslora_2025.METHODS, *bayeslora_2026.METHODS, LINE)
    runs, out = Path("runs/speaking_time"), Path("results/speaking_time.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the short form and where the tables go."""
        parser.add_argument("--quick", action="store_true", help="few scripts, epochs and draws: to see that it runs")
        parser.add_argument("--page", type=Path, help="a file with the markers speaking_time, …_differences, …")

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and measure one method with one seed."""
        run_one(method, seed, self._settings(arguments), arguments.runs)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Fetch the prompts once, and claim the folder for their times."""
        digest = hashlib.sha256(repr(load()).encode()).hexdigest()
        weights = bayeslora_2026.METHODS
        claim_folder(arguments.runs, self._settings(arguments), data=digest, kl_weights=weights)
        return ["--quick"] if arguments.quick else []

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Print the tables, and write them into the page."""
        found = tables(records, [row for path in predictions for row in read_rows(path, Row)])
        print("\n\n".join("\n".join(lines) for lines in found.values()))
        if arguments.page:
            rewrite_file(arguments.page, found)

    @staticmethod
    def _settings(arguments: argparse.Namespace) -> Settings:
        return QUICK if arguments.quick else Settings()


if __name__ == "__main__":
    raise SystemExit(SpeakingTime().main())
