"""λ by layer: how strongly each linear layer of a trained CoLA listens to the other encoder, by depth.

The paper's figure of this shows, for pictures and words, larger λ in shallow layers for queries and keys.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from bayes_adapters.analysis.plots import COLOURS
from bayes_adapters.errors import DataError, missing_package
from examples.grounding.records import Gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD = "cola.both"
TITLES = {"vision": "into the picture's encoder", "text": "into the words' encoder"}


def write_gains(path: Path, gains: Sequence[Gain]) -> None:
    """Write every λ as a JSON list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([gain._asdict() for gain in gains], indent=1) + "\n", encoding="utf-8")


def read_gains(path: Path) -> list[Gain]:
    """Read what :func:`write_gains` wrote."""
    return [Gain(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def by_depth(gains: Sequence[Gain], method: str = METHOD) -> dict[str, dict[str, list[float]]]:
    """Return encoder → linear layer → mean λ over seeds at each depth.

    Raises:
        DataError: nothing was measured of the method.
    """
    found: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for gain in gains:
        if gain.method == method:
            found[gain.encoder, gain.linear, gain.depth].append(gain.gain)
    if not found:
        raise DataError(f"There is no λ of {method!r}; there is of {sorted({gain.method for gain in gains})}.")
    curves: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (encoder, linear, _), values in sorted(found.items(), key=lambda item: item[0][2]):
        curves[encoder][linear].append(fmean(values))
    return {encoder: dict(own) for encoder, own in curves.items()}


def draw(gains: Sequence[Gain], method: str = METHOD) -> Figure:
    """Draw a panel per encoder, a line per linear layer of its blocks."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("The picture", "matplotlib", "demo") from error
    curves = by_depth(gains, method)
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    panels = figure.subplots(1, len(TITLES), sharey=True)
    for axes, (encoder, title) in zip(panels, TITLES.items(), strict=True):
        for number, (linear, values) in enumerate(curves.get(encoder, {}).items()):
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "os^Dv*"[number % 6]}
            axes.plot(range(1, len(values) + 1), values, lw=1.4, ms=4, label=linear, **style)
        axes.set(title=title, xlabel="block")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("λ")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the picture; equal numbers give an equal file."""
    import matplotlib as mpl

    mpl.rcParams["svg.hashsalt"] = "bayes-adapters"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
