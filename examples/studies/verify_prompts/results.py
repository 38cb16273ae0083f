"""All methods over several seeds: ``make results``. Each run is written as it finishes; a second call continues.

    python -m examples.studies.verify_prompts.results --seeds 5 --jobs 2

Records go to ``results/verify_prompts.json``, predictions and the report to ``runs/results/``.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from bayes_adapters.analysis.records import Record, write_records
from examples.studies.grid import Grid, claim_folder
from examples.studies.rows import read_rows, write_rows
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.demo import setup
from examples.studies.verify_prompts.experiment import Settings, evaluate, train
from examples.studies.verify_prompts.methods import METHODS
from examples.studies.verify_prompts.predictions import Prediction
from examples.studies.verify_prompts.report import write_report


def run_one(method: str, seed: int, settings: Settings, runs: Path) -> None:
    """Train and measure one method with one seed, and write its records and predictions."""
    checkpoint = runs / "checkpoints" / f"{method}-{seed}"
    checkpoint.mkdir(parents=True, exist_ok=True)  # fails now rather than after the first epoch
    corpus = Corpus.load()
    trained = train(corpus, method, seed, settings, checkpoint=checkpoint)
    records, predictions = evaluate(corpus, trained, settings)
    write_rows(runs / f"{method}-{seed}.csv", Prediction, predictions)
    write_records(runs / f"{method}-{seed}.json", records)


class ScriptVerification(Grid[Record]):
    """Every method of script verification × seeds."""

    module = "examples.studies.verify_prompts.results"
    description = __doc__
    methods = tuple(METHODS)
    runs, out = Path("runs/results"), Path("results/verify_prompts.json")

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and measure one method with one seed."""
        run_one(method, seed, Settings(device=arguments.device), arguments.runs)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder and fetch and convert the corpus once, before processes share it."""
        own_weights = {name: str(m.kl_weight) for name, m in METHODS.items() if m.kl_weight is not None}
        claim_folder(arguments.runs, Settings(), kl_weights=own_weights)
        self.corpus, self.started = Corpus.load(), time.perf_counter()
        return []

    def report(self, arguments: argparse.Namespace, records: list[Record], predictions: list[Path]) -> None:
        """Write ``report.md`` and its pictures into the folder of the runs."""
        rows = [row for path in predictions for row in read_rows(path, Prediction)]
        times = [f"{arguments.jobs} runs at a time"]
        description = setup(self.corpus, Settings(device=arguments.device), times, time.perf_counter() - self.started)
        write_report(arguments.runs, records, rows, setup=description)


if __name__ == "__main__":
    raise SystemExit(ScriptVerification().main())
