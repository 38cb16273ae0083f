"""All methods over several seeds, trained to the end on 200 utterances of MELD; a second call continues.

    python -m examples.studies.few_labels.results --data FOLDER --jobs 2

Records go to ``results/few_labels.json``, predictions, logs and the report to ``runs/few_labels/``; ``--page
docs/results/few-labels.md`` also puts the tables between the markers ``few_labels``, ``few_labels_differences`` (to
LoRA with a temperature) and ``few_labels_frozen`` (to a head alone) of that file. Of every method there are two rows:
as it is, and after one temperature (``…-temperature``).
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from bayes_adapters.analysis.intervals import Interval, ece_floor, holm, pigeonhole
from bayes_adapters.analysis.metrics import aurc, ece
from bayes_adapters.analysis.records import write_records
from bayes_adapters.backbones import text_backbone
from examples.studies.comparison import grouped_difference, markdown, mean_table, rewrite_file, short, signed
from examples.studies.few_labels.experiment import SCALED, SETTINGS, Result, run
from examples.studies.few_labels.methods import METHODS, Tuned
from examples.studies.few_labels.task import FewLabels
from examples.studies.grid import Grid, claim_folder
from examples.studies.meld.data import Meld, voice_prompts
from examples.studies.meld.experiment import CLEAN
from examples.studies.meld.records import Row
from examples.studies.meld.results import backbone
from examples.studies.meld.task import Settings
from examples.studies.rows import read_rows, write_rows

REFERENCE = "lora" + SCALED
"""The baseline to beat: LoRA and one fitted temperature."""
COLUMNS: dict[str, tuple[str, str]] = {
    "train accuracy": (CLEAN, "train_accuracy"),
    "accuracy": (CLEAN, "accuracy"),
    "NLL": (CLEAN, "nll"),
    "Brier": (CLEAN, "brier"),
    "ECE": (CLEAN, "ece"),
    "AURC": (CLEAN, "aurc"),
    "NLL typos 10 %": ("typos@10", "nll"),
    "NLL typos 30 %": ("typos@30", "nll"),
    "AUROC prompts (total)": ("ood-prompts", "auroc_ood_total"),
    "AUROC prompts (epistemic)": ("ood-prompts", "auroc_ood"),
}
"""Heading → condition and metric. NLL in nats; three classes in equal shares have 1.099."""
_DRAWS = 300

Said = dict[str, dict[int, dict[str, Row]]]
"""Method → seed → key of an utterance → what was said of it."""


def differences(
    rows: Sequence[Row], reference: str = REFERENCE, draws: int = _DRAWS, condition: str = CLEAN
) -> list[str]:
    """Return a table of each method minus ``reference`` on the test utterances of ``condition``.

    Intervals are over training seeds and dialogues together. P-values are adjusted for the number of methods (Holm).
    The last columns are the ECE, its mean over seeds, and its floor: what these probabilities would show if they were
    true (:func:`bayes_adapters.analysis.intervals.ece_floor`).
    """
    said: Said = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.condition == condition:
            said[row.method][row.seed][row.key] = row
    others = [name for name in said if name != reference]
    nlls = [nll_difference(said[name], said[reference]) for name in others]
    adjusted = holm([found.p_value for found in nlls])
    lines = []
    for name, loss, p in zip(others, nlls, adjusted, strict=True):
        risk = _risk_difference(said[name], said[reference], draws)
        cells = [signed(*found[:3]) for found in (loss, risk)]
        calibration = [short(value, 3) for value in _calibration(said[name])]
        lines.append([f"{name} − {reference}", cells[0], short(p, 3), cells[1], *calibration])
    lines.append([reference, "", "", "", *(short(value, 3) for value in _calibration(said[reference]))])
    return markdown(["difference", "NLL", "p (Holm)", "AURC", "ECE", "its floor"], lines)


def _calibration(said: Mapping[int, Mapping[str, Row]]) -> tuple[float, float]:
    found = []
    for rows in said.values():
        probs = torch.tensor([_probs(row) for row in rows.values()], dtype=torch.float64)
        labels = torch.tensor([row.label for row in rows.values()])
        found.append((ece(probs, labels), ece_floor(probs, seed=0).mean))
    return fmean(one for one, _ in found), fmean(floor for _, floor in found)


def nll_difference(one: Mapping[int, Mapping[str, Row]], two: Mapping[int, Mapping[str, Row]]) -> Interval:
    """Return the difference of two methods' NLLs, nats, over their common seeds, with dialogues as units.

    Args:
        one: seed → key → what the first said, the same keys for every seed.
        two: the same of the second.
    """
    seeds, keys = _shared(one, two)
    groups = [one[seeds[0]][key].group for key in keys]
    table = torch.tensor([[_nll(one[s][k]) - _nll(two[s][k]) for k in keys] for s in seeds], dtype=torch.float64)
    return grouped_difference(table, groups)


def _risk_difference(
    one: Mapping[int, Mapping[str, Row]], two: Mapping[int, Mapping[str, Row]], draws: int
) -> Interval:
    seeds, keys = _shared(one, two)

    def tensors(said: Mapping[int, Mapping[str, Row]]) -> tuple[Tensor, Tensor]:
        totals = torch.tensor([[said[s][k].total for k in keys] for s in seeds], dtype=torch.float64)
        wrong = torch.tensor([[float(not _right(said[s][k])) for k in keys] for s in seeds], dtype=torch.float64)
        return totals, wrong

    groups = [one[seeds[0]][key].group for key in keys]
    return pigeonhole(aurc, tensors(one), tensors(two), groups=groups, draws=draws, seed=0)


def _shared(one: Mapping[int, Mapping[str, Row]], two: Mapping[int, Mapping[str, Row]]) -> tuple[list[int], list[str]]:
    seeds = sorted(one.keys() & two.keys())
    return seeds, list(one[seeds[0]])


def _probs(row: Row) -> tuple[float, float, float]:
    return row.p_negative, row.p_neutral, row.p_positive


def _nll(row: Row) -> float:
    return -math.log(max(_probs(row)[row.label], 1e-7))


def _right(row: Row) -> bool:
    return max(range(3), key=_probs(row).__getitem__) == row.label


def publish(title: str, tables: Mapping[str, Sequence[str]], arguments: argparse.Namespace) -> None:
    """Write tables into ``report.md`` in the folder of the runs, and between their markers of ``--page``."""
    lines = [f"# {title}", ""]
    for table in tables.values():
        lines += [*table, ""]
    (arguments.runs / "report.md").write_text("\n".join(lines), encoding="utf-8")
    if arguments.page:
        rewrite_file(arguments.page, tables)


class MeldGrid(Grid[Result]):
    """What the grids of this study share: MELD's folder, a page for the tables, and the files of a run.

    A subclass says in ``settings``, ``tuned`` (methods of ``table``, whose knobs count) and ``facts`` what the runs in
    one folder have in common.
    """

    record = Result
    on_device = False
    settings: ClassVar[Settings] = SETTINGS
    table: ClassVar[Mapping[str, Tuned]] = METHODS
    tuned: ClassVar[tuple[str, ...]]
    facts: ClassVar[dict[str, Any]] = {}

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add the data, and where the tables go."""
        parser.add_argument("--data", type=Path, required=True, help="folder of MELD's three *_sent_emo.csv")
        parser.add_argument("--page", type=Path, help="a file with the markers of the tables")

    def measured(self, data: Meld, method: str, seed: int, runs: Path) -> tuple[Sequence[Result], list[Row]]:
        """Train and measure one method with one seed; what runs share may be kept in the folder ``runs``."""
        raise NotImplementedError

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Do one run, and write what it gave."""
        results, rows = self.measured(Meld.load(arguments.data), method, seed, arguments.runs)
        write_rows(arguments.runs / f"{method}-{seed}.csv", Row, rows)
        write_records(arguments.runs / f"{method}-{seed}.json", results)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder for these data and values of the knobs."""
        chosen = {name: self.table[name].chosen for name in self.tuned}
        data = Meld.load(arguments.data)
        claim_folder(arguments.runs, self.settings, data=data.digest, knobs=chosen, **self.facts)
        return ["--data", str(arguments.data)]


class FewLabelsGrid(MeldGrid):
    """Every method × seeds."""

    module = "examples.studies.few_labels.results"
    description = __doc__
    methods = tuned = tuple(METHODS)
    runs, out = Path("runs/few_labels"), Path("results/few_labels.json")

    def measured(self, data: Meld, method: str, seed: int, runs: Path) -> tuple[Sequence[Result], list[Row]]:
        """Train and measure one method with one seed."""
        return run(FewLabels.of(data, voice_prompts(), text_backbone()[1], backbone, SETTINGS, seed), method, seed)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder, and fetch the prompts once."""
        found = super().prepare(arguments)
        voice_prompts()
        return found

    def report(self, arguments: argparse.Namespace, records: list[Result], predictions: list[Path]) -> None:
        """Write ``report.md`` into the folder of the runs, and the tables into the page."""
        tables = {"few_labels": mean_table(records, COLUMNS, "method")}
        rows = [row for path in predictions for row in read_rows(path, Row)]
        seeds = {row.seed for row in rows if row.method == REFERENCE}
        if len(seeds) > 1:
            tables["few_labels_differences"] = differences(rows)
            tables["few_labels_frozen"] = differences(rows, "frozen")
        publish("Few labels, trained to the end", tables, arguments)


if __name__ == "__main__":
    raise SystemExit(FewLabelsGrid().main())
