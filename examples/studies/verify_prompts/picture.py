"""Draw the README's picture: a recording gets noisier, the uncertainty rises.

    python -m examples.studies.verify_prompts.picture

Reads ``results/verify_prompts.json`` and writes ``docs/uncertainty.svg``: CALIBER-X's accuracy, total and epistemic
uncertainty on test recordings under babble noise, which no training recording had, and without audio.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from bayes_adapters.analysis.plots import COLOURS
from bayes_adapters.analysis.records import Record, read_records
from bayes_adapters.errors import DataError, missing_package
from examples.studies.user_errors import user_errors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD = "caliber-x"
LADDER = {
    "clean": "clean",
    "babble@20": "20 dB",
    "babble@10": "10 dB",
    "babble@5": "5 dB",
    "babble@0": "0 dB",
    "babble@-5": "−5 dB",
    "missing": "no audio",
}
"""Condition → how the axis calls it: the level of speech over that of babble."""
LINES = {
    "accuracy": "share of right answers",
    "total": "total uncertainty (nats)",
    "epistemic": "epistemic part (nats)",
}


def curve(records: Sequence[Record], metric: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation over training seeds of ``metric`` under every condition of :data:`LADDER`.

    Raises:
        DataError: a condition has fewer than two records of :data:`METHOD`.
    """
    means, spreads = [], []
    for condition in LADDER:
        values = [getattr(r, metric) for r in records if r.method == METHOD and r.condition == condition]
        if len(values) < 2:
            raise DataError(f"{METHOD} has {len(values)} records under {condition!r}; the picture needs two or more.")
        means.append(fmean(values))
        spreads.append(stdev(values))
    return means, spreads


def draw(records: Sequence[Record]) -> Figure:
    """Draw one line per entry of :data:`LINES`, with a band of one standard deviation over training seeds."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("The picture", "matplotlib", "demo") from error
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(LADDER))
    for (metric, label), colour, marker in zip(LINES.items(), COLOURS, "os^", strict=False):
        means, spreads = curve(records, metric)
        axes.plot(places, means, color=colour, marker=marker, lw=1.6, ms=5, label=label)
        low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
        axes.fill_between(places, low, high, color=colour, alpha=0.15, lw=0)
    axes.axhline(0.5, color="0.6", lw=0.9, ls=(0, (4, 3)), zorder=0)
    axes.annotate("a coin", (0, 0.5), (-2, 3), textcoords="offset points", fontsize=8, color="0.4")
    axes.set_xticks(places, list(LADDER.values()))
    axes.set(ylim=(0, 1), xlabel="speech over babble noise, never heard in training")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False, fontsize=9)
    return figure


@user_errors
def main() -> int:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results/verify_prompts.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/uncertainty.svg"))
    arguments = parser.parse_args()
    figure = draw(read_records(arguments.results))
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "bayes-adapters"  # equal records give an equal file
    figure.savefig(arguments.out, metadata={"Date": None} if arguments.out.suffix == ".svg" else None)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
