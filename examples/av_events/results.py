"""Every method on both tasks × training seeds; each run is written as it finishes, and a second call continues.

    python -m examples.av_events.results --data fsdd8k.npz --seeds 3 --jobs 2
    python -m examples.av_events.results --data fsdd8k.npz --only masks

A run is ``task-method``. The transformer of the frames is pre-trained first, once. Records go to
``results/av_events.json``, runs and what was said of every clip or frame to ``runs/av_events/``. Of a task of which
runs have finished the page gets the tables, between its markers ``av_TASK``, ``av_TASK_differences`` and
``av_TASK_told_apart``.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from bayes_adapters.analysis.records import write_records
from bayes_adapters.backbones import speech_encoder
from examples.av_events.digits import mnist
from examples.av_events.experiment import run
from examples.av_events.kept import kept
from examples.av_events.methods import METHODS
from examples.av_events.nets import Nets
from examples.av_events.pretrain import vision_encoder
from examples.av_events.recordings import default_path, load
from examples.av_events.records import Result, Row
from examples.av_events.tables import split, tables
from examples.av_events.task import Settings, Task
from examples.studies.comparison import rewrite_file
from examples.studies.grid import Grid, claim_folder
from examples.studies.rows import read_rows, write_rows

SETTINGS = Settings()


class AudioVisual(Grid[Result]):
    """Methods and tasks × seeds."""

    module = "examples.av_events.results"
    description = __doc__
    methods = tuple(f"{task}-{method}" for task in Task for method in METHODS)
    record = Result
    seeds = 3
    runs, out = Path("runs/av_events"), Path("results/av_events.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the data, a choice by task, and where the tables are."""
        parser.add_argument("--data", type=Path, help="the recordings, as examples/av_events/recordings.py has them")
        parser.add_argument("--only", nargs="+", choices=[*Task], default=[*Task], help="tasks to run")
        parser.add_argument("--page", type=Path, default=Path("docs/results/av-events.md"))

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and test one method on one task."""
        task, name = split(method)
        nets = _nets()
        data = kept(task, load(arguments.data, SETTINGS.seconds), mnist(), nets, SETTINGS, arguments.runs)
        records, rows = run(method, name, nets.above(SETTINGS.blocks), data, seed, SETTINGS)
        write_rows(arguments.runs / f"{method}-{seed}.csv", Row, rows)
        write_records(arguments.runs / f"{method}-{seed}.json", records)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and fetch and pre-train once what the runs share."""
        arguments.methods = [m for m in arguments.methods if split(m)[0] in arguments.only]
        data = arguments.data or default_path()
        recordings = load(data, SETTINGS.seconds)  # a file that is missing is one error, not one a run
        claim_folder(arguments.runs, SETTINGS, data=hashlib.sha256(data.read_bytes()).hexdigest())
        nets, written = _nets(), mnist()
        for task in {split(method)[0] for method in arguments.methods}:
            kept(task, recordings, written, nets, SETTINGS, arguments.runs)
        return ["--data", str(data)]

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Write the tables into the page."""
        found = tables(records, [row for path in predictions for row in read_rows(path, Row)])
        if arguments.page.is_file():
            rewrite_file(arguments.page, found)
        print("\n\n".join("\n".join(lines) for lines in found.values()))


def _nets() -> Nets:
    return Nets(vision_encoder(), speech_encoder(max_seconds=SETTINGS.seconds))


if __name__ == "__main__":
    raise SystemExit(AudioVisual().main())
