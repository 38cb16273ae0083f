"""Write the tables of measured results into the README, between its markers.

``python -m examples.verify_prompts.tables`` reads ``results/verify_prompts.json`` and
``results/verify_prompts_ablation.json``; what is not measured yet is not shown.
"""

from __future__ import annotations

import argparse
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from bayes_adapters.errors import DataError
from bayes_adapters.records import Record, read_records

COLUMNS: dict[str, tuple[str, str]] = {
    "clean AUC": ("clean", "auc"),
    "clean NLL": ("clean", "nll"),
    "clean ECE": ("clean", "ece"),
    "hard AUC": ("hard", "auc"),
    "white −5 dB AUC": ("white@-5", "auc"),
    "white −5 dB NLL": ("white@-5", "nll"),
    "babble −5 dB AUC": ("babble@-5", "auc"),
    "babble −5 dB NLL": ("babble@-5", "nll"),
    "reverb AUC": ("reverb", "auc"),
    "no audio NLL": ("missing", "nll"),
}
"""Heading → condition and metric. NLL in nats; a coin has .693."""
LANGUAGES = ("es", "fr", "it", "ru")


def table(records: Sequence[Record], columns: dict[str, tuple[str, str]], first: str) -> list[str]:
    """Return a Markdown table with a row per method in the order of the records: mean ± standard deviation over seeds.

    Args:
        records: of one split.
        columns: heading → (condition, metric); columns that nothing was measured for are left out.
        first: heading of the column of methods.
    """
    cells: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        cells[record.method, record.condition].append(record)
    methods = list(dict.fromkeys(record.method for record in records))
    shown = {h: (c, m) for h, (c, m) in columns.items() if any((method, c) in cells for method in methods)}
    rows = [[first, "seeds", *shown, "foreign speech told apart: es / fr / it / ru"]]
    rows.append(["---"] * len(rows[0]))
    for method in methods:
        seeds = len(cells[method, "clean"])
        values = [_cell([getattr(r, metric) for r in cells[method, c]]) for c, metric in shown.values()]
        foreign = [_mean([r.auroc_ood for r in cells[method, f"ood-{language}"]]) for language in LANGUAGES]
        rows.append([method, str(seeds), *values, " / ".join(_short(value) for value in foreign)])
    return ["| " + " | ".join(row) + " |" for row in rows]


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def _short(value: float, digits: int = 2) -> str:
    return "–" if math.isnan(value) else f"{value:.{digits}f}".replace("0.", ".", 1)


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {_short(stdev(values), 3)}" if len(values) > 1 and all(map(math.isfinite, values)) else ""
    return _short(_mean(values), 3) + spread


def rewrite(text: str, name: str, lines: Sequence[str]) -> str:
    """Put ``lines`` between the markers ``<!-- name -->`` and ``<!-- /name -->`` of ``text``.

    Raises:
        DataError: the markers are not there, once each.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    body = "\n".join(lines) + "\n"
    replaced, count = pattern.subn(lambda m: m.group(1) + body + m.group(2), text)
    if count != 1:
        raise DataError(f"The text has {count} pairs of markers <!-- {name} --> … <!-- /{name} -->; it needs one.")
    return replaced


def main() -> int:
    """Parse the command line and rewrite the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    text = arguments.readme.read_text()
    sources: dict[str, Callable[[list[Record]], list[str]]] = {
        "verify_prompts": lambda records: table(records, COLUMNS, "method"),
        "verify_prompts_ablation": lambda records: table(records, COLUMNS, "variant of CALIBER-X"),
    }
    for name, make in sources.items():
        path = arguments.results / f"{name}.json"
        if path.is_file():
            text = rewrite(text, name, make(read_records(path)))
    arguments.readme.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
