r"""The study of grounding: methods × tasks × seeds; each run is written as it finishes, and a second call continues.

    python -m examples.grounding.results --seeds 5 --jobs 2
    python -m examples.grounding.results --seeds 3 --methods late-fusion.both concat-lora-matched.both cola.both

A row is ``method.task``, see :mod:`examples.grounding.methods`. The first call pre-trains the vision transformer, see
:mod:`examples.grounding.pretrain`. Test scenes are the same for all seeds; training and validation scenes are not, nor
is what is random in training. Records go to ``results/grounding.json``, λ of every CoLA to
``results/grounding_gains.json``, what was said of each expression to ``runs/grounding/``, and the tables between the
markers ``grounding_…`` of the page, whose picture of λ lies beside it.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from torch import nn

from bayes_adapters.analysis.records import write_records
from examples.grounding import picture, tables
from examples.grounding.data import splits
from examples.grounding.encoders import encoders
from examples.grounding.experiment import run
from examples.grounding.methods import METHODS
from examples.grounding.records import Gain, Result, Row
from examples.grounding.training import Settings, Study
from examples.grounding.vision import VisionSettings
from examples.studies.comparison import rewrite_file
from examples.studies.grid import Grid, claim_folder
from examples.studies.rows import read_rows, write_rows

SETTINGS = Settings()


class Groundings(Grid[Result]):
    """Methods and tasks × seeds."""

    module = "examples.grounding.results"
    description = __doc__
    methods = METHODS
    record = Result
    seeds = 5
    runs, out = Path("runs/grounding"), Path("results/grounding.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the length of training, and where the tables are."""
        parser.add_argument("--epochs", type=int, default=SETTINGS.epochs, help="of methods that adapt the encoders")
        parser.add_argument("--page", type=Path, default=Path("docs/results/grounding.md"))

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and measure one method for one task."""
        records, rows, gains = run(study(seed, settings(arguments), arguments.runs), method)
        write_rows(arguments.runs / f"{method}-{seed}.csv", Row, rows)
        if gains:
            write_rows(gains_of(arguments.runs / f"{method}-{seed}.json"), Gain, gains)
        write_records(arguments.runs / f"{method}-{seed}.json", records)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and pre-train the vision transformer before processes share it."""
        encoders()
        claim_folder(arguments.runs, settings(arguments), vision=asdict(VisionSettings()))
        return ["--epochs", str(arguments.epochs)]

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Write λ, the tables into the page, and the picture beside it."""
        gains = [gain for path in map(gains_of, predictions) if path.is_file() for gain in read_rows(path, Gain)]
        picture.write_gains(arguments.out.with_name(f"{arguments.out.stem}_gains.json"), gains)
        if not arguments.page.is_file():
            return
        rows = [row for path in predictions for row in read_rows(path, Row)]
        rewrite_file(arguments.page, page(records, rows))
        if any(gain.method == picture.METHOD for gain in gains):
            picture.save(picture.draw(gains), arguments.page.with_name("grounding-gains.svg"))


def settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings that the command line asks for."""
    return replace(SETTINGS, epochs=arguments.epochs)


def gains_of(run_file: Path) -> Path:
    """Return where the λ of a run are, beside its other files."""
    return run_file.with_name(f"{run_file.stem}-gains.csv")


def study(seed: int, asked: Settings, runs: Path) -> Study:
    """Make the scenes of a seed, and load the frozen encoders once."""
    nets, tokenizer = encoders()
    fresh = partial(copy.deepcopy, nn.ModuleDict(nets))
    return Study(splits(seed, asked.sizes), fresh, tokenizer, seed, asked, runs / "heads")


def page(records: Sequence[Result], rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return every table by the name of its markers."""
    return tables.means(records) | {
        "grounding_forms": tables.forms(rows),
        "grounding_differences": tables.differences(rows),
    }


if __name__ == "__main__":
    raise SystemExit(Groundings().main())
