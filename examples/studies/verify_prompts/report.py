"""Turn the records and predictions of a run into metrics.json, predictions.csv, figures and report.md.

Every sentence of the report is computed from the numbers it is given; none is written in advance.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bayes_adapters.analysis.records import Record, write_records
from bayes_adapters.errors import DataError
from examples.studies.rows import write_rows
from examples.studies.verify_prompts.comparisons import REFERENCE, differences
from examples.studies.verify_prompts.figures import draw_figures
from examples.studies.verify_prompts.findings import NOISES, audio_findings
from examples.studies.verify_prompts.markdown import Cells, Pairs, count, number, table
from examples.studies.verify_prompts.methods import METHODS
from examples.studies.verify_prompts.predictions import Prediction
from examples.studies.verify_prompts.rises import rises

CONDITIONS = (
    "clean", "hard", *(f"{noise}@{snr}" for noise in NOISES for snr in (20, 10, 5, 0, -5)), "missing", "reverb", "clip",
    "ood-es", "ood-fr", "ood-it", "ood-ru",
)  # fmt: skip
COLUMNS: dict[str, str] = {
    "accuracy": "accuracy", "auc": "AUC", "nll": "NLL (nats)", "brier": "Brier", "ece": "ECE (15 bins)",
    "auroc_error": "AUROC error (total)", "auroc_error_epistemic": "AUROC error (epistemic)",
    "auroc_ood": "AUROC OOD (epistemic)", "auroc_ood_total": "AUROC OOD (total)", "aurc": "AURC",
}  # fmt: skip


def write_report(
    folder: str | os.PathLike[str],
    records: Iterable[Record],
    predictions: Iterable[Prediction],
    *,
    setup: Mapping[str, str],
    split: str | None = None,
    draws: int = 1000,
) -> Path:
    """Write metrics.json, predictions.csv, figures/*.png and report.md into ``folder``; return the path of report.md.

    Args:
        folder: made when absent; files of the same name are replaced.
        records: one per method, seed, split and condition.
        predictions: the pairs behind them; the figures and paired differences come from these.
        setup: what the report says was run (backbone, data, steps, …), name → text.
        split: the split the report is about; None is the only one there is, or "test". The two data files hold all.
        draws: bootstrap resamples of each paired difference.

    Raises:
        DataError: no record, a split that is not there, or two records of one method, seed, split and condition.
    """
    records, predictions, folder = list(records), list(predictions), Path(folder)
    splits = sorted({r.split for r in records})
    split = split or (splits[0] if len(splits) == 1 else "test")
    if split not in splits:
        raise DataError(f"No record has split {split!r}; present: {', '.join(splits) or 'none'}. Pass split=….")
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    pairs: dict[tuple[str, str], list[Prediction]] = defaultdict(list)
    for record in sorted((r for r in records if r.split == split), key=lambda r: r.seed):
        if any(r.seed == record.seed for r in cells[record.method, record.condition]):
            raise DataError(f"Two records of {record.method}, seed {record.seed}, {split}, {record.condition}.")
        cells[record.method, record.condition].append(record)
    for row in predictions:
        if row.split == split:
            pairs[row.method, row.condition].append(row)
    methods, conditions = _ordered((m for m, _ in cells), [*METHODS]), _ordered((c for _, c in cells), CONDITIONS)
    seeds = sorted({r.seed for cell in cells.values() for r in cell})

    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "metrics.json", records)
    write_rows(folder / "predictions.csv", Prediction, predictions)
    lines = ["# Verifying spoken prompts: results", "", "## Setup", "", *table(["what", "value"], setup.items())]
    lines += [
        f"Split `{split}`, {count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}). {_spread(len(seeds))}",
        "",
    ]
    lines += draw_figures(folder, pairs, methods)
    lines += ["## Does the uncertainty know the audio?", "", *audio_findings(cells, methods, conditions)]
    lines += rises(pairs, methods, draws)
    lines += ["## Results by condition", "", *_glossary(methods, pairs)]
    for condition in conditions:
        lines += [f"### {condition}", "", *_results(cells, methods, condition)]
        lines += differences(pairs, methods, condition, draws)
    path = folder / "report.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def _ordered(names: Iterable[str], known: Sequence[str]) -> list[str]:
    return sorted(set(names), key=lambda n: (known.index(n) if n in known else len(known), n))


def _spread(seeds: int) -> str:
    if seeds == 1:
        return "One seed: nothing here says how much another training run would differ."
    return "Cells are mean ± standard deviation over seeds."


def _results(cells: Cells, methods: Sequence[str], condition: str) -> list[str]:
    here = [m for m in methods if (m, condition) in cells]
    return table(
        ["method", "n", *COLUMNS.values()],
        (
            [m, "/".join(dict.fromkeys(str(r.n) for r in cells[m, condition]))]
            + [number(float(getattr(r, key)) for r in cells[m, condition]) for key in COLUMNS]
            for m in here
        ),
    )


def _glossary(methods: Sequence[str], pairs: Pairs) -> list[str]:
    text = (
        "AUROC error: do wrong answers get more uncertainty than right ones. AUROC OOD: does this condition get more "
        "than the in-distribution reference. AURC: mean error rate over all coverages, most certain first, by total "
        "uncertainty. Higher is better for accuracy, AUC and AUROC, lower for the rest; – is undefined (one class, no "
        "error) or not measured."
    )
    if any((REFERENCE, c) in pairs for _, c in pairs) and len(methods) > 1:
        text += (
            f" Differences, most of them method minus `{REFERENCE}`, are on the same pairs, averaged over the seeds "
            "both have, with a 95 % interval from resampling scripts: it reflects the choice of test scripts, not of "
            "training seeds."
        )
    return [text, ""]
