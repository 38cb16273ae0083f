"""Other backbones: does what MiniLM and Whisper show hold for a decoder, and for another audio encoder?

    python -m examples.studies.verify_prompts.backbones --jobs 2

``smollm2-whisper`` reads the script with SmolLM2-135M, the state of its last token pooled: the top six layers are
adapted, query and value of each, as many sites as MiniLM's six layers have, above hidden states that are computed once.
``minilm-speaker`` hears with an LSTM that was trained to tell speakers apart
(:mod:`examples.studies.verify_prompts.speaker`). All else is as in :mod:`examples.studies.verify_prompts.results`,
whose records, ``results/verify_prompts.json``, are the first rows of the table. Records go to
``results/verify_prompts_backbones.json``, predictions to ``runs/backbones/``; the table goes between the markers
``verify_prompts_backbones`` of the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bayes_adapters.analysis.records import Record, read_records, write_records
from bayes_adapters.backbones import language_model
from examples.studies.comparison import rewrite_file
from examples.studies.grid import Grid, claim_folder
from examples.studies.rows import write_rows
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.decoded import DecodedCorpus
from examples.studies.verify_prompts.experiment import Settings, evaluate, train
from examples.studies.verify_prompts.predictions import Prediction
from examples.studies.verify_prompts.speaker import POOL, speaker_encoder
from examples.studies.verify_prompts.tables import COLUMNS, table

LAYERS = 6
MODELS = {
    "minilm-whisper": "MiniLM × Whisper",
    "smollm2-whisper": "SmolLM2 × Whisper",
    "minilm-speaker": "MiniLM × LSTM",
}
HEARING = ("lora-fusion-temperature", "caliber-x", "caliber-x-fusion")
RUNS = {
    f"{models}-{method}": (models, method)
    for models, methods in (("smollm2-whisper", ("lora-text", *HEARING)), ("minilm-speaker", HEARING))
    for method in methods
}
"""Name of a run's method → models and method of :mod:`examples.studies.verify_prompts.methods`."""
PUBLISHED = ("lora-text", *HEARING)
CONDITIONS = ("clean", "hard", "white@-5", "babble@-5", "missing", "ood-es", "ood-fr", "ood-it", "ood-ru")
_SHOWN = {h: c for h, c in COLUMNS.items() if c[0] in CONDITIONS}


def load(models: str, runs: Path) -> Corpus:
    """Return the corpus as one of :data:`MODELS` reads and hears it; states and frames are made once."""
    corpus = Corpus.load()
    if models == "minilm-speaker":
        encoder = speaker_encoder()
        stores = {name: store.with_encoder(encoder, pool=POOL) for name, store in corpus.stores.items()}
        return replace(corpus, stores=stores)
    if models == "smollm2-whisper":
        return DecodedCorpus.of(corpus, *language_model(), LAYERS, runs)
    return corpus


def settings_of(arguments: argparse.Namespace) -> Settings:
    """Return the settings of the study, with fewer conditions."""
    return Settings(epochs=arguments.epochs, conditions=CONDITIONS)


def rows_of(published: Sequence[Record], measured: Sequence[Record]) -> list[Record]:
    """Return the records of the table, each method called by its models as well."""
    known = [r for r in published if r.method in PUBLISHED and r.condition in CONDITIONS]
    known.sort(key=lambda record: PUBLISHED.index(record.method))
    named = [replace(record, method=f"{MODELS['minilm-whisper']}: {record.method}") for record in known]
    for name, (models, method) in RUNS.items():
        named += [replace(r, method=f"{MODELS[models]}: {method}") for r in measured if r.method == name]
    return named


class BackbonesGrid(Grid[Record]):
    """Models and methods × seeds."""

    module = "examples.studies.verify_prompts.backbones"
    description = __doc__
    methods = tuple(RUNS)
    seeds = 2
    runs, out = Path("runs/backbones"), Path("results/verify_prompts_backbones.json")
    on_device = False

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the length of training, and where published records and the table are."""
        parser.add_argument("--epochs", type=int, default=Settings().epochs)
        parser.add_argument("--published", type=Path, default=Path("results/verify_prompts.json"))
        parser.add_argument("--page", type=Path, default=Path("docs/results/script-verification.md"))

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and measure one method with one seed."""
        models, own = RUNS[method]
        settings = settings_of(arguments)
        corpus = load(models, arguments.runs)
        trained = train(corpus, own, seed, settings)
        records, predictions = evaluate(corpus, trained, settings)
        write_rows(
            arguments.runs / f"{method}-{seed}.csv", Prediction, [p._replace(method=method) for p in predictions]
        )
        write_records(arguments.runs / f"{method}-{seed}.json", [replace(r, method=method) for r in records])

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and make states and frames once, before processes share them."""
        settings = settings_of(arguments)
        claim_folder(arguments.runs, settings, layers=LAYERS)
        for models in dict.fromkeys(RUNS[method][0] for method in arguments.methods):
            corpus = load(models, arguments.runs)
            for store, language, condition in corpus.parts(settings.mix, settings.conditions):
                store.encode(language, condition)
        return ["--epochs", str(arguments.epochs)]

    def report(self, arguments: argparse.Namespace, records: list[Record], predictions: list[Path]) -> None:
        """Write the table into the page."""
        lines = table(rows_of(read_records(arguments.published), records), _SHOWN, "models and method")
        (arguments.runs / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if arguments.page.is_file():
            rewrite_file(arguments.page, {"verify_prompts_backbones": lines})


if __name__ == "__main__":
    raise SystemExit(BackbonesGrid().main())
