"""Figures of calibration and uncertainty. They need matplotlib and no display: no pyplot, no global state.

Every function takes plain arrays (tensors, numpy, lists) in dicts by name and returns a ``matplotlib.figure.Figure``;
write it with ``figure.savefig("name.png")``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_adapters.errors import DataError, missing_package
from bayes_adapters.likelihoods.prediction import PARTS as PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito (2008), tell-apart for the colour-blind; yellow is left out, it vanishes on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
#: Conditions of one noise panel, from clean to no audio at all, and how the axis calls them.
LEVELS = {"clean": "clean", "20": "20", "10": "10", "5": "5", "0": "0", "-5": "−5", "missing": "missing"}


def reliability_diagram(panels: Mapping[str, Mapping[str, Any]], *, lowest: float = 0.5, least: int = 5) -> Figure:
    """Draw accuracy against confidence with the share of examples below, one panel per method.

    Args:
        panels: method → line (such as "clean", "noise") → (confidence, accuracy, count), each of shape (bins,), as
            :func:`bayes_adapters.analysis.metrics.reliability_bins` returns. The same lines in every
            panel, at most seven. The title states ``ECE = sum_b n_b/N |accuracy_b - confidence_b|``.
        lowest: left end of the confidence axis: 1/C, so 0.5 for two classes.
        least: bins of fewer examples get no point, since their accuracy is mostly chance; they count in the ECE.

    >>> import torch
    >>> bins = (torch.tensor([0.6, 0.9]), torch.tensor([0.5, 0.9]), torch.tensor([4, 12]))
    >>> len(reliability_diagram({"lora": {"clean": bins}}).axes)
    2
    """
    figure, columns = _grid(panels, "reliability_diagram")
    rows = math.ceil(len(panels) / columns)
    figure.set_size_inches(0.5 + 2.75 * columns, 0.7 + 3.6 * rows)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=(4, 1) * rows)
    bars: list[Axes] = []
    for i, (name, lines) in enumerate(panels.items()):
        top = figure.add_subplot(grid[2 * (i // columns), i % columns])
        low = figure.add_subplot(
            grid[2 * (i // columns) + 1, i % columns], sharex=top, sharey=bars[0] if bars else None
        )
        bars.append(low)
        top.plot([0, 1], [0, 1], color="0.55", lw=1, ls=(0, (4, 3)), zorder=1)
        drawn, errors = _styles(lines), []
        for j, (label, bins) in enumerate(lines.items()):
            confidence, accuracy, count = (_array(v, f"panels[{name!r}][{label!r}]") for v in bins)
            full, share, width = count > 0, count / max(count.sum(), 1), 1 / len(count)
            errors.append(f"{label} {(share * np.abs(accuracy - confidence))[full].sum():.3f}")
            solid = count >= least
            top.plot(confidence[solid], accuracy[solid], label=label, lw=1.5, ms=4.5, **drawn[label])
            left = width * (np.arange(len(count)) + 0.1 + 0.8 * j / len(lines))
            low.bar(left, share, 0.8 * width / len(lines), align="edge", color=drawn[label]["color"])
        edge = math.floor(lowest * len(count)) / len(count)  # the left edge of the bin that holds ``lowest``
        top.set(xlim=(edge, 1.01), ylim=(0, 1.02), xticks=[t / 10 for t in range(11) if t / 10 >= lowest])
        top.set_title(f"{name}\nECE: {', '.join(errors)}", fontsize=10)
        top.tick_params(labelbottom=False)
        low.tick_params(labelleft=i % columns == 0)
        top.tick_params(labelleft=i % columns == 0)
        if i % columns == 0:
            top.set_ylabel("accuracy")
            low.set_ylabel("share")
        if i + columns >= len(panels):
            low.set_xlabel("confidence")
        _clean(top, low)
    bars[0].set_ylim(0, None)
    figure.align_ylabels()
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 4), frameon=False)
    return figure


def risk_coverage_plot(curves: Mapping[str, tuple[Any, Any]], *, risk: str = "error rate") -> Figure:
    """Draw the risk of the answers kept against the coverage, one line per method, with its AURC in the legend.

    Args:
        curves: method → (coverage, risk), each of shape (N,), as
            :func:`bayes_adapters.analysis.metrics.risk_coverage` returns. The legend shows the mean risk over the N
            coverages, which is :func:`bayes_adapters.analysis.metrics.aurc`.
        risk: name and unit of the risk axis.

    >>> len(risk_coverage_plot({"lora": ([0.5, 1.0], [0.0, 0.25])}).axes[0].lines)
    1
    """
    figure, _ = _grid(curves, "risk_coverage_plot")
    figure.set_size_inches(6.8, 3.6)
    axes = figure.add_subplot()
    drawn = _styles(curves)
    highest = 0.0
    for name, curve in curves.items():
        coverage, values = (_array(v, f"curves[{name!r}]") for v in curve)
        style = drawn[name] | {"marker": None}
        # The first few examples make a jumping line that says nothing: draw from 2 % coverage on.
        shown = coverage >= min(0.02, coverage[-1])
        highest = max(highest, float(values[shown].max()))
        axes.plot(coverage[shown], values[shown], lw=1.7, label=f"{name}  (AURC {values.mean():.3f})", **style)
    axes.set(xlim=(0, 1), ylim=(0, 1.05 * highest or 1), ylabel=risk)
    axes.set_xlabel("coverage (share answered, most certain first)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    _clean(axes)
    return figure


def uncertainty_by_condition(
    values: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    *,
    noises: Sequence[str] = ("white", "babble"),
    reference: float = math.log(2),
    reference_label: str = "ln 2 (no knowledge)",
) -> Figure:
    """Draw mean total, aleatoric and epistemic uncertainty against the noise: a row a part, a column a noise.

    Args:
        values: method → condition → part ("total", "aleatoric", "epistemic") → (mean, low, high) in nats, where low
            and high are the ends of a 95 % interval. Conditions are "clean", "missing" and "<noise>@<SNR in dB>" for
            SNR 20, 10, 5, 0 and -5; others are ignored, absent ones leave a gap in the line.
        noises: the columns.
        reference: a dashed line at this many nats in the rows of total and aleatoric uncertainty.
        reference_label: what it is called.

    >>> one = {"total": (0.3, 0.2, 0.4), "aleatoric": (0.2, 0.1, 0.3), "epistemic": (0.1, 0.05, 0.15)}
    >>> len(uncertainty_by_condition({"lora": {"clean": one, "white@5": one}}).axes)
    6
    """
    figure, _ = _grid(values, "uncertainty_by_condition")
    figure.set_size_inches(0.9 + 3.9 * len(noises), 7.6)
    grid = figure.subplots(3, len(noises), sharex=True, sharey="row", squeeze=False)
    drawn = _styles(values)
    for row, part in enumerate(PARTS):
        for column, noise in enumerate(noises):
            axes = grid[row, column]
            if part != "epistemic":
                axes.axhline(reference, color="0.45", lw=1, ls=(0, (4, 3)), zorder=1)
            for i, (method, by_condition) in enumerate(values.items()):
                names = [k if k in ("clean", "missing") else f"{noise}@{k}" for k in LEVELS]
                triples = [by_condition.get(k, {}).get(part, (math.nan,) * 3) for k in names]
                mean, low, high = np.asarray(triples, dtype=float).T
                x = np.arange(len(LEVELS)) + 0.09 * (i - (len(values) - 1) / 2)
                error = np.clip([mean - low, high - mean], 0, None)
                axes.errorbar(x, mean, error, label=method, lw=1.4, ms=4, elinewidth=0.9, capsize=0, **drawn[method])
            axes.set_xticks(range(len(LEVELS)), list(LEVELS.values()))
            if row == 0:
                axes.set_title(f"{noise} noise")
            if row == 2:
                axes.set_xlabel("signal-to-noise ratio (dB)")
            if column == 0:
                axes.set_ylabel(f"{part} (nats)")
            _clean(axes)
    for row in range(3):
        top = max([grid[row, 0].get_ylim()[1]] + ([reference * 1.12] if row < 2 else []))
        grid[row, 0].set_ylim(-0.03 * top, top)  # a line at zero stays whole
    grid[0, 0].annotate(
        reference_label, (0, reference), (0, 3), textcoords="offset points", ha="left", color="0.35", fontsize=8.5
    )
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.align_ylabels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4 if len(labels) == 4 else 3, frameon=False)
    return figure


def ranks_by_layer(ranks: Mapping[str, int], rank: int) -> Figure:
    """Draw how many ranks each adapted layer has: a row per kind of layer, a column per block of the network.

    Args:
        ranks: path of an adapted layer → its ranks, as ``model.ranks`` and a record of pruning have them. The last
            number in a path is its block; a path without one gets the column "–". Where blocks of several stages or
            encoders would share a cell, a row's name is the whole path, with ``*`` in the block's place.
        rank: r before pruning, where the colours end.

    >>> figure = ranks_by_layer({"layer.0.query": 3, "layer.1.query": 0, "head": 8}, 8)
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['3', '0', '8']
    """
    figure, _ = _grid(ranks, "ranks_by_layer", "adapted layer")
    places = {path: _block(path) for path in ranks}
    if len(set(places.values())) < len(places):
        places = {path: _block(path, whole=True) for path in ranks}
    blocks = sorted({block for _, block in places.values()}, key=lambda b: (b is None, b or 0))
    kinds = list(dict.fromkeys(kind for kind, _ in places.values()))
    values = np.full((len(kinds), len(blocks)), np.nan)
    for path, (kind, block) in places.items():
        values[kinds.index(kind), blocks.index(block)] = ranks[path]
    figure.set_size_inches(2.6 + 0.075 * max(map(len, kinds)) + 0.42 * len(blocks), 1.3 + 0.42 * len(kinds))
    axes = figure.add_subplot()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=rank, aspect="equal")
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            colour = "white" if value > 0.6 * rank else "black"
            axes.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=8.5)
    axes.set_xticks(range(len(blocks)), ["–" if block is None else str(block) for block in blocks])
    axes.set_yticks(range(len(kinds)), kinds)
    axes.set_xlabel("block")
    total = sum(ranks.values())
    axes.set_title(f"{total} of {rank * len(ranks)} ranks left in {len(ranks)} layers", fontsize=10, loc="left")
    axes.tick_params(labelsize=9, length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="ranks", shrink=0.9, pad=0.02)
    return figure


def attribution_bars(values: Mapping[str, Mapping[str, Sequence[float]]], *, what: str = "the modality") -> Figure:
    """Draw how much a modality removes (to the left) or adds (to the right): one row per label, one bar per part.

    Args:
        values: label (a modality, or a kind of example) → part ("total", "aleatoric", "epistemic") → (mean, low, high)
            in nats, where low and high are the ends of a 95 % interval: what
            :meth:`bayes_adapters.analysis.attribution.Attribution.means` returns. Absent parts leave a gap.
        what: whose change it is, for the axis.

    >>> audio = {"total": (-0.3, -0.4, -0.2), "aleatoric": (-0.31, -0.4, -0.2), "epistemic": (0.01, 0.0, 0.02)}
    >>> len(attribution_bars({"audio": audio}).axes[0].patches)
    3
    """
    figure, _ = _grid(values, "attribution_bars", "label")
    figure.set_size_inches(6.8, 1.5 + 0.62 * len(values))
    axes = figure.add_subplot()
    axes.axvline(0, color="0.35", lw=1, zorder=1)
    rows = np.arange(len(values))
    for i, (part, colour) in enumerate(zip(PARTS, COLOURS, strict=False)):
        triples = [by_part.get(part, (math.nan,) * 3) for by_part in values.values()]
        mean, low, high = np.asarray(triples, dtype=float).T
        error = np.clip([mean - low, high - mean], 0, None)
        style: dict[str, Any] = {"color": colour, "error_kw": {"elinewidth": 1, "ecolor": "0.15"}}
        axes.barh(rows + 0.26 * (i - 1), mean, 0.24, xerr=error, capsize=2, label=part, **style)
    axes.set_yticks(rows, list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)  # the first label on top
    axes.set_xlabel(f"change of uncertainty by {what} (nats): removes < 0 < adds")
    _clean(axes)
    axes.grid(False, axis="y")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    return figure


def _block(path: str, whole: bool = False) -> tuple[str, int | None]:
    """Split a layer's path into its kind, with ``whole`` all of it, and the number of its block."""
    parts = path.split(".")
    places = [i for i, part in enumerate(parts) if part.isdecimal()]
    if not places:
        return path, None
    number, first = int(parts[places[-1]]), places[-1] + 1
    if whole:
        return ".".join([*parts[: first - 1], "*", *parts[first:]]), number
    return ".".join(parts[first:]) or path, number


def _grid(entries: Mapping[str, Any], function: str, what: str = "method") -> tuple[Figure, int]:
    """Check that matplotlib and something to draw exist; return an empty figure and a number of columns."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("A figure", "matplotlib", "demo") from error
    if not entries:
        raise DataError(f"{function} needs at least one {what}; got none. Were all of them filtered out?")
    return Figure(layout="constrained", dpi=200), min(3, len(entries))


def _styles(names: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    if len(names) > len(COLOURS):
        raise DataError(f"At most {len(COLOURS)} lines can be told apart in one panel; got {len(names)}.")
    return {n: {"color": c, "marker": m} for n, c, m in zip(names, COLOURS, MARKERS, strict=False)}


def _array(values: Any, where: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not array.size:
        raise DataError(f"{where} must hold arrays of shape (N,), N >= 1; got shape {array.shape}.")
    return array


def _clean(*panels: Axes) -> None:
    for axes in panels:
        axes.grid(True, color="0.9", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9, color="0.5")
