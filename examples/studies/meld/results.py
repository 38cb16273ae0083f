"""All methods over several seeds on MELD. Each run is written as it finishes; a second call continues.

    python -m examples.studies.meld.results --data FOLDER --seeds 5 --jobs 2

Records go to ``results/meld.json``, predictions, logs and the report to ``runs/meld/``; ``--page
docs/results/sentiment.md`` also puts the two tables between the markers ``meld`` and ``meld_differences`` of that file.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bayes_adapters.analysis import metrics
from bayes_adapters.analysis.bootstrap import PairedDifference
from bayes_adapters.analysis.records import write_records
from bayes_adapters.backbones import text_backbone
from examples.studies.comparison import Metric, difference_table, mean_table, paired_differences, rewrite_file
from examples.studies.grid import Grid, claim_folder
from examples.studies.meld.data import Meld, voice_prompts
from examples.studies.meld.experiment import CLEAN, FROZEN, OOD, run
from examples.studies.meld.methods import KL_WEIGHTS, METHODS, PRUNED
from examples.studies.meld.records import Result, Row
from examples.studies.meld.task import Settings, Task
from examples.studies.rows import read_rows, write_rows

EVERY = (FROZEN, *METHODS)
REFERENCE = "lora"
CONTROL = "lora-r5"
"""The LoRA that is subtracted from :data:`PRUNED` in one more row of the differences."""
COLUMNS: dict[str, tuple[str, str]] = {
    "trained": (CLEAN, "parameters"),
    "accuracy": (CLEAN, "accuracy"),
    "NLL": (CLEAN, "nll"),
    "Brier": (CLEAN, "brier"),
    "ECE": (CLEAN, "ece"),
    "AUROC error": (CLEAN, "auroc_error"),
    "AURC": (CLEAN, "aurc"),
    "AUROC prompts (epistemic)": (OOD, "auroc_ood"),
    "AUROC prompts (total)": (OOD, "auroc_ood_total"),
    "ranks": (CLEAN, "ranks_kept"),
}
"""Heading → condition and metric. ``trained`` counts numbers; NLL in nats, three classes in equal shares have 1.099."""


def backbone() -> nn.Module:
    """Return a fresh text encoder, without dropout: the only noise in training is the method's."""
    model, _ = text_backbone()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def run_one(name: str, seed: int, data: Meld, settings: Settings, runs: Path) -> None:
    """Train and measure one method with one seed, and write its predictions, then its records."""
    checkpoint = runs / "checkpoints" / f"{name}-{seed}"
    checkpoint.mkdir(parents=True, exist_ok=True)
    task = Task.make(data, voice_prompts(), text_backbone()[1], backbone, settings, seed)
    results, rows = run(task, name, seed, settings, checkpoint)
    write_rows(runs / f"{name}-{seed}.csv", Row, rows)
    write_records(runs / f"{name}-{seed}.json", results)


def _probs(rows: Tensor) -> Tensor:
    return rows[:, 1:4]


def _labels(rows: Tensor) -> Tensor:
    return rows[:, 0].long()


def _right(rows: Tensor) -> Tensor:
    return metrics.correct(_probs(rows), _labels(rows)).double()


def _nll(rows: Tensor) -> Tensor:
    return -_probs(rows).gather(1, _labels(rows)[:, None])[:, 0].clamp(min=1e-7).log()


def _brier(rows: Tensor) -> Tensor:
    return (_probs(rows) - nn.functional.one_hot(_labels(rows), 3)).square().sum(-1)


ON_TEST: dict[str, Metric] = {
    "accuracy": _right,
    "NLL": _nll,
    "Brier": _brier,
    "ECE": lambda rows: metrics.ece(_probs(rows), _labels(rows)),
    "AUROC error": lambda rows: metrics.auroc(rows[:, 4], 1 - _right(rows)),
}
"""Metric of rows (label, three probabilities, total, epistemic) of test utterances."""
WITH_PROMPTS: dict[str, Metric] = {
    "AUROC prompts (epistemic)": lambda rows: metrics.auroc(rows[:, 5], _labels(rows) < 0),
    "AUROC prompts (total)": lambda rows: metrics.auroc(rows[:, 4], _labels(rows) < 0),
}
"""The same of rows of test utterances and prompts together; a prompt's label is -1."""


def differences(
    rows: Sequence[Row], reference: str = REFERENCE, draws: int = 500
) -> dict[str, dict[str, PairedDifference]]:
    """Return each method minus ``reference`` on pooled predictions, with intervals from resampling whole dialogues."""
    outputs: dict[bool, Any] = {pooled: defaultdict(lambda: defaultdict(dict)) for pooled in (False, True)}
    for r in rows:
        for pooled in (False, True) if r.condition == CLEAN else (True,):
            numbers = (float(r.label), r.p_negative, r.p_neutral, r.p_positive, r.total, r.epistemic)
            outputs[pooled][r.method][r.seed][r.key, r.group] = numbers
    group: Callable[[Any], Any] = lambda key: key[1]  # noqa: E731
    parts = [
        paired_differences(outputs[pooled], reference, chosen, group=group, draws=draws)
        for pooled, chosen in ((False, ON_TEST), (True, WITH_PROMPTS))
    ]
    return {m: parts[0][m] | parts[1][m] for m in parts[0]}


def report(setup: Sequence[str], tables: dict[str, list[str]], path: Path) -> None:
    """Write the tables and what was run as Markdown."""
    lines = ["# MELD: sentiment of utterances", "", *setup, ""]
    for table in tables.values():
        lines += [*table, ""]
    path.write_text("\n".join(lines), encoding="utf-8")


def describe(data: Meld, settings: Settings, seeds: int) -> list[str]:
    """Say what was run."""
    sizes = {name: len(part) for name, part in data.splits.items()}
    known = {u.text.lower() for u in data.splits["train"]}
    test = data.dialogues("test", settings.test_size)
    share = sum(u.text.lower() in known for u in test) / len(test)
    weights = ", ".join(f"{name} {weight:g}" for name, weight in KL_WEIGHTS.items())
    return [
        f"* Official splits, {sizes['train']} / {sizes['dev']} / {sizes['test']} utterances; {len(data.dropped)} left "
        "out of training because the same moment is in a later split.",
        f"* Of these {settings.train_size or sizes['train']} for training (drawn by seed), "
        f"{settings.dev_size or sizes['dev']} to choose the epoch, {len(test)} test utterances in whole dialogues; "
        f'{share:.0%} of the test utterances are word for word among all training utterances ("What?").',
        f"* {settings.epochs} epochs, batches of {settings.batch_size}, AdamW {settings.lr:g}; r = {settings.rank}, "
        f"α = {settings.alpha:g} on query and value of all layers of a frozen MiniLM; {settings.samples} draws, "
        f"ensembles of {settings.members}; {seeds} seeds.",
        f"* Weights of the KL of posteriors over weights: {weights}; chosen by the NLL of dev utterances, that of "
        f"{PRUNED} by the fewest ranks at LoRA's accuracy and NLL on them.",
        "* Out of distribution: the English scripts of telephone prompts. Differences are in pairs, with 95 % "
        "intervals from resampling dialogues: they reflect the choice of test dialogues, not of training seeds.",
    ]


class MeldSentiment(Grid[Result]):
    """Every method on MELD × seeds."""

    module = "examples.studies.meld.results"
    description = __doc__
    methods = EVERY
    record = Result
    runs, out = Path("runs/meld"), Path("results/meld.json")

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the data, their sizes and where the tables go."""
        parser.add_argument("--data", type=Path, required=True, help="folder of MELD's three *_sent_emo.csv")
        parser.add_argument("--train-size", type=int, default=Settings.train_size, help="0 is all")
        parser.add_argument("--test-size", type=int, default=Settings.test_size, help="0 is all")
        parser.add_argument("--page", type=Path, help="a file with the markers meld and meld_differences")

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and measure one method with one seed."""
        run_one(method, seed, Meld.load(arguments.data), self._settings(arguments), arguments.runs)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder for these data and KL weights, and fetch the prompts once."""
        self.data = Meld.load(arguments.data)
        claim_folder(arguments.runs, self._settings(arguments), data=self.data.digest, kl_weights=KL_WEIGHTS)
        voice_prompts()
        sizes = ["--train-size", str(arguments.train_size), "--test-size", str(arguments.test_size)]
        return ["--data", str(arguments.data), *sizes]

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Write ``report.md`` into the folder of the runs, and the tables into the page."""
        tables = {"meld": mean_table(records, COLUMNS, "method")}
        rows = [row for path in predictions for row in read_rows(path, Row)]
        measured = {row.method for row in rows}
        if {REFERENCE} < measured:
            tables["meld_differences"] = difference_table(differences(rows), REFERENCE)
            if {PRUNED, CONTROL} <= measured:
                pair = [row for row in rows if row.method in {PRUNED, CONTROL}]
                tables["meld_differences"] += difference_table(differences(pair, CONTROL), CONTROL)[2:]
        report(describe(self.data, self._settings(arguments), arguments.seeds), tables, arguments.runs / "report.md")
        if arguments.page:
            rewrite_file(arguments.page, tables)

    @staticmethod
    def _settings(arguments: argparse.Namespace) -> Settings:
        return Settings(
            device=arguments.device,
            train_size=arguments.train_size or None,
            test_size=arguments.test_size or None,
        )


if __name__ == "__main__":
    raise SystemExit(MeldSentiment().main())
