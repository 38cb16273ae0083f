"""Write the tables of measured results into their page, between its markers.

``python -m examples.studies.verify_prompts.tables`` reads ``results/verify_prompts.json`` and
``results/verify_prompts_ablation.json``; what is not measured yet is not shown.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from bayes_adapters.analysis.records import Record, read_records
from bayes_adapters.errors import DataError
from examples.studies.comparison import mean_of, mean_table, rewrite_file, short
from examples.studies.user_errors import user_errors

COLUMNS: dict[str, tuple[str, str]] = {
    "trained": ("clean", "parameters"),
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
"""Heading → condition and metric. ``trained`` counts numbers; NLL in nats, a coin has .693."""
LANGUAGES = ("es", "fr", "it", "ru")


def table(records: Sequence[Record], columns: dict[str, tuple[str, str]], first: str) -> list[str]:
    """Return a Markdown table with a row per method in the order of the records: mean ± standard deviation over seeds.

    Args:
        records: of one split.
        columns: heading → (condition, metric); columns that nothing was measured for are left out.
        first: heading of the column of methods.
    """
    foreign: dict[tuple[str, str], list[float]] = defaultdict(list)
    for record in records:
        foreign[record.method, record.condition].append(record.auroc_ood)

    def told_apart(method: str) -> str:
        return " / ".join(short(mean_of(foreign[method, f"ood-{language}"])) for language in LANGUAGES)

    return mean_table(records, columns, first, last={"foreign speech told apart: es / fr / it / ru": told_apart})


@user_errors
def main() -> int:
    """Parse the command line and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, default=Path("docs/results/script-verification.md"))
    parser.add_argument("--results", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    sources: dict[str, Callable[[list[Record]], list[str]]] = {
        "verify_prompts": lambda records: table(records, COLUMNS, "method"),
        "verify_prompts_ablation": lambda records: table(records, COLUMNS, "variant of CALIBER-X"),
    }
    paths = {name: arguments.results / f"{name}.json" for name in sources}
    tables = {name: make(read_records(paths[name])) for name, make in sources.items() if paths[name].is_file()}
    if not tables:
        raise DataError(f"There is none of {', '.join(map(str, paths.values()))}; nothing was written.")
    rewrite_file(arguments.page, tables)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
