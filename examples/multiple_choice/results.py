"""All methods over several seeds, as questions with answer letters to SmolLM2; a second call continues.

    python -m examples.multiple_choice.results --data FOLDER --jobs 2

Records go to ``results/multiple_choice.json``, predictions, hidden states, logs and the report to
``runs/multiple_choice/``; ``--page docs/results/multiple-choice.md`` also puts the tables between the markers
``multiple_choice`` (last state), ``multiple_choice_selected`` (the epoch that dev utterances choose) and, for each,
``…_differences`` (to LoRA with a temperature) of that file. Of every method there are two rows: as it is, and after one
temperature (``…-temperature``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bayes_adapters.backbones import language_model
from examples.multiple_choice.experiment import SELECTED, SETTINGS, Answered, run
from examples.multiple_choice.methods import METHODS
from examples.multiple_choice.task import make
from examples.studies.comparison import mean_table
from examples.studies.few_labels.results import REFERENCE, MeldGrid, differences, publish
from examples.studies.meld.data import Meld
from examples.studies.meld.experiment import CLEAN
from examples.studies.meld.records import Row
from examples.studies.rows import read_rows

_METRICS = {
    "train accuracy": "train_accuracy",
    "accuracy": "accuracy",
    "NLL": "nll",
    "Brier": "brier",
    "ECE": "ece",
    "AURC": "aurc",
    "temperature": "temperature",
    "epoch": "epoch",
}
TABLES = {"multiple_choice": CLEAN, "multiple_choice_selected": SELECTED}
"""Marker of a table of means → its condition."""


def means(records: Sequence[Answered], condition: str) -> list[str]:
    """Return the table of a condition. NLL in nats; three classes in equal shares have 1.099."""
    columns = {heading: (condition, metric) for heading, metric in _METRICS.items()}
    return mean_table(records, columns, "method", reference=condition)


class MultipleChoiceGrid(MeldGrid):
    """Every method × seeds."""

    module = "examples.multiple_choice.results"
    description = __doc__
    record = Answered
    methods = tuned = tuple(METHODS)
    table = METHODS
    seeds = 3
    settings = SETTINGS
    runs, out = Path("runs/multiple_choice"), Path("results/multiple_choice.json")

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and encode the questions of all seeds once."""
        found = super().prepare(arguments)
        decoder = language_model()
        data = Meld.load(arguments.data)
        for seed in range(arguments.seeds):
            make(data, lambda: decoder, self.settings, seed, arguments.runs / "states")
        return found

    def measured(self, data: Meld, method: str, seed: int, runs: Path) -> tuple[list[Answered], list[Row]]:
        """Train and measure one method with one seed."""
        return run(make(data, language_model, self.settings, seed, runs / "states"), method, seed, self.settings)

    def report(self, arguments: argparse.Namespace, records: list[Any], predictions: list[Path]) -> None:
        """Write ``report.md`` into the folder of the runs, and the tables into the page."""
        tables = {marker: means(records, condition) for marker, condition in TABLES.items()}
        rows = [row for path in predictions for row in read_rows(path, Row)]
        if len({row.seed for row in rows if row.method == REFERENCE}) > 1:
            tables |= {f"{marker}_differences": differences(rows, condition=c) for marker, c in TABLES.items()}
        publish("Multiple choice", tables, arguments)


if __name__ == "__main__":
    raise SystemExit(MultipleChoiceGrid().main())
