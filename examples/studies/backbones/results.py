r"""The grid: cells of encoders × folds, each run all five methods in one fold.

    python -m examples.studies.backbones.results --seeds 3 --jobs 2 \
        --cells minilm-whisper4 smollm2-whisper4 minilm-lstm3 minilm-whisper2

changes one thing at a time: text encoder, audio encoder, layer. A cell takes about ten minutes of a quiet core per fold
with MiniLM and thirteen with SmolLM2, where frames are made already, which takes one (LSTM) to three minutes per layer.
Ten epochs, half of the published rows', keep the grid affordable; the learning rate falls within them.

A seed is a fold, of five. Each method is written as it finishes, and a second call continues. Records go to
``results/backbones.json``, differences to ``results/backbones_differences.json``, predictions to ``runs/text_audio/``,
and the tables between the markers ``backbones``, ``backbones_wins`` and ``backbones_differences`` of the page.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bayes_adapters.analysis.records import Record, read_records, write_records
from examples.studies.backbones import differences
from examples.studies.backbones.encoders import CELLS, corpus_of, prompts_of
from examples.studies.backbones.experiment import CONDITIONS, METHODS, TEMPERATURE, measure
from examples.studies.backbones.folds import COUNT, VALIDATION, Folds
from examples.studies.comparison import mean_of, mean_table, rewrite_file, short
from examples.studies.grid import Grid, claim_folder
from examples.studies.rows import read_rows, write_rows
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.experiment import Settings
from examples.studies.verify_prompts.predictions import Prediction

SETTINGS = Settings(epochs=10, conditions=CONDITIONS)
LANGUAGES = tuple(c.removeprefix("ood-") for c in CONDITIONS if c.startswith("ood-"))
MEANS: dict[str, tuple[str, str]] = {
    "trained": ("clean", "parameters"),
    "clean AUC": ("clean", "auc"),
    "hard AUC": ("hard", "auc"),
    "white −5 dB AUC": ("white@-5", "auc"),
    "babble −5 dB AUC": ("babble@-5", "auc"),
}
NLLS = {"clean": "clean", "hard": "hard", "white −5 dB": "white@-5", "babble −5 dB": "babble@-5", "no audio": "missing"}


def means(records: Sequence[Record]) -> list[str]:
    """Return the Markdown table of means over folds; an NLL has that with a temperature beside it."""
    titles = {f"{name}-{method}": f"{cell.title}: {method}" for name, cell in CELLS.items() for method in METHODS}
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        own = record.method.removesuffix(TEMPERATURE)
        found[titles[own] + record.method.removeprefix(own), record.condition].append(record)

    def nll(condition: str) -> Callable[[str], str]:
        def text(title: str) -> str:
            both = (found[name, condition] for name in (title, title + TEMPERATURE))
            return " → ".join(short(mean_of([record.nll for record in own]), 3) for own in both)

        return text

    def told_apart(title: str) -> str:
        return " / ".join(short(mean_of([r.auroc_ood for r in found[title, f"ood-{x}"]])) for x in LANGUAGES)

    last = {f"{heading} NLL → with T": nll(condition) for heading, condition in NLLS.items()}
    last[f"foreign speech told apart: {' / '.join(LANGUAGES)}"] = told_apart
    shown = [replace(record, method=titles[name]) for name in titles for record in records if record.method == name]
    return mean_table(shown, MEANS, "encoders and method", last=last)


class Backbones(Grid[Record]):
    """Cells × folds."""

    module = "examples.studies.backbones.results"
    description = __doc__
    methods = tuple(CELLS)
    option = "--cells"
    seeds = COUNT
    runs, out = Path("runs/text_audio"), Path("results/backbones.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the length of training, and where the tables are."""
        parser.add_argument("--epochs", type=int, default=SETTINGS.epochs)
        parser.add_argument("--page", type=Path, default=Path("docs/results/other-encoders.md"))

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and test every method of one cell in one fold; what is done already is read."""
        folder = arguments.runs / "methods"
        records: list[Record] = []
        rows: list[Prediction] = []
        corpus: Corpus | None = None
        for trained in METHODS:
            path = folder / f"{method}-{trained}-{seed}.json"
            if not path.is_file():
                corpus = corpus or _corpus(method, seed, arguments.runs)
                settings = replace(SETTINGS, epochs=arguments.epochs)
                new_records, new_rows = measure(corpus, f"{method}-{trained}", trained, seed, settings)
                write_rows(path.with_suffix(".csv"), Prediction, new_rows)
                write_records(path, new_records)
            records += read_records(path)
            rows += read_rows(path.with_suffix(".csv"), Prediction)
        write_rows(arguments.runs / f"{method}-{seed}.csv", Prediction, rows)
        write_records(arguments.runs / f"{method}-{seed}.json", records)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and make the frames of every layer once, before processes share them."""
        settings = replace(SETTINGS, epochs=arguments.epochs)
        claim_folder(arguments.runs, settings, methods=METHODS, folds=COUNT, validation=VALIDATION)
        (arguments.runs / "methods").mkdir(exist_ok=True)
        for cell in arguments.methods:
            corpus = _corpus(cell, 0, arguments.runs)  # all folds have the same frames
            for store, language, condition in corpus.parts(settings.mix, settings.conditions):
                store.encode(language, condition)
        return ["--epochs", str(arguments.epochs)]

    def report(self, arguments: argparse.Namespace, records: list[Record], predictions: list[Path]) -> None:
        """Write the differences, and the tables into the page."""
        found = differences.differences([row for path in predictions for row in read_rows(path, Prediction)])
        differences.write(arguments.out.with_name(f"{arguments.out.stem}_differences.json"), found)
        if arguments.page.is_file():
            rewrite_file(arguments.page, {"backbones": means(records)} | differences.tables(found))


def _corpus(cell: str, fold: int, runs: Path) -> Corpus:
    prompts = prompts_of(LANGUAGES)
    return corpus_of(CELLS[cell], fold, prompts, Folds.make(prompts), states=runs)


if __name__ == "__main__":
    raise SystemExit(Backbones().main())
