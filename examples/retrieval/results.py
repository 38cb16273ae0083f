"""Every method × seeds; each run is written as it finishes, and a second call continues.

    python -m examples.retrieval.results --seeds 5 --jobs 2
    python -m examples.retrieval.results --page docs/results/retrieval.md

A seed is that of training. Records go to ``results/retrieval.json``, what was said of every recording to
``runs/retrieval/``; ``--page`` also puts the tables between the markers ``retrieval_whole``, ``retrieval_lists``,
``retrieval_no_match``, ``retrieval_differences`` and ``retrieval_costs`` of that file.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bayes_adapters.analysis.records import write_records
from examples.retrieval import tables
from examples.retrieval.data import Task, below_stores
from examples.retrieval.experiment import run
from examples.retrieval.methods import METHODS
from examples.retrieval.records import Result, Row
from examples.retrieval.training import Settings
from examples.studies.comparison import rewrite_file
from examples.studies.grid import Grid, claim_folder
from examples.studies.rows import read_rows, write_rows
from examples.studies.verify_prompts.corpus import Corpus

SETTINGS = Settings()


class RetrievalGrid(Grid[Result]):
    """Every method × seeds."""

    module = "examples.retrieval.results"
    description = __doc__
    methods = tuple(METHODS)
    record = Result
    runs, out = Path("runs/retrieval"), Path("results/retrieval.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add where the tables go."""
        parser.add_argument("--page", type=Path, help="a file with the markers of the tables")

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Do one run, and write what it gave."""
        results, rows = run(Task.of(Corpus.load()), method, seed, SETTINGS)
        write_rows(arguments.runs / f"{method}-{seed}.csv", Row, rows)
        write_records(arguments.runs / f"{method}-{seed}.json", results)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and make the frames once, before processes share them."""
        tried = {name: method.tries for name, method in METHODS.items()}
        claim_folder(arguments.runs, SETTINGS, tries=tried)
        corpus = Corpus.load()
        for own in (corpus, replace(corpus, stores=below_stores(corpus))):
            for store, language, condition in own.parts(SETTINGS.mix, SETTINGS.conditions):
                store.encode(language, condition)
        return []

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Write the tables."""
        said = tables.arranged(row for path in predictions for row in read_rows(path, Row))
        found = {
            "retrieval_whole": tables.means(records, tables.MEANS),
            "retrieval_lists": tables.means(records, tables.LISTS),
            "retrieval_no_match": tables.means(records, tables.NO_MATCH),
            "retrieval_costs": tables.costs(records),
        }
        if len({seed for methods in said.values() for own in methods.values() for seed in own}) > 1:
            found["retrieval_differences"] = tables.differences(said)
        (arguments.runs / "report.md").write_text("\n\n".join("\n".join(lines) for lines in found.values()) + "\n")
        if arguments.page:
            rewrite_file(arguments.page, found)


if __name__ == "__main__":
    raise SystemExit(RetrievalGrid().main())
