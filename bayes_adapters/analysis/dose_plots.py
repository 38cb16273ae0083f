"""A picture of how uncertainty answers to doses; see :mod:`bayes_adapters.analysis.plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from bayes_adapters.analysis.dose_response import DoseResponse, Triple
from bayes_adapters.analysis.plots import _clean, _grid, _styles
from bayes_adapters.errors import DataError
from bayes_adapters.likelihoods.prediction import PARTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDEST = 8
"""Letters of a tick in one line: longer ones would run into their neighbours."""


def dose_response_plot(
    responses: Mapping[str, DoseResponse], *, dose: str = "dose", ticks: Sequence[str] | None = None
) -> Figure:
    """Draw the three parts of uncertainty against the dose, and the NLL beside the marginal predictor's, by method.

    Bars are 95 % intervals over examples. The legend says each method's Spearman's ρ of dose and total. The panel of
    the NLL is there where every method has ``excess``: above the dashed line it is worse than the marginal predictor.

    Args:
        responses: method → its response; all have the same doses.
        dose: name and unit of the axis.
        ticks: what the doses are called, D texts; None writes the numbers. Doses stand at equal distances.

    Raises:
        DataError: no method, more than seven, other doses, or another number of ticks.

    >>> from bayes_adapters.analysis.dose_response import dose_response
    >>> import math, torch
    >>> from bayes_adapters import Prediction
    >>> def says(total):
    ...     return Prediction(total, total, total, 0 * total, num_samples=1)
    >>> found = dose_response({k: says(torch.rand(5)) for k in (0.0, 1.0, math.inf)}, draws=10)
    >>> len(dose_response_plot({"lora": found}, dose="blur (pixels)", ticks=["0", "1", "no image"]).axes)
    3
    """
    figure, _ = _grid(responses, "dose_response_plot")
    doses = {response.doses for response in responses.values()}
    if len(doses) > 1:
        raise DataError(f"Methods in one picture need the same doses; got {sorted(doses)[:3]}.")
    names = [f"{d:g}" for d in next(iter(doses))] if ticks is None else list(ticks)
    if len(names) != len(next(iter(doses))):
        raise DataError(f"ticks names each of {len(next(iter(doses)))} doses; got {len(names)}.")
    lines = [fill(name, _WIDEST, break_long_words=False, break_on_hyphens=False) for name in names]
    lossy = all(response.excess for response in responses.values())
    panels = figure.subplots(1, 3 + lossy, squeeze=False)[0]
    figure.set_size_inches(0.6 + 3.2 * len(panels), 3.6)
    drawn = _styles(responses)
    for i, (method, response) in enumerate(responses.items()):
        offset = 0.09 * (i - (len(responses) - 1) / 2)
        label = f"{method}  (ρ {response.spearman['total'][0]:+.2f})"
        rows: list[tuple[Triple, ...]] = [response.parts[part] for part in PARTS]
        for axes, triples in zip(panels, [*rows, response.excess] if lossy else rows, strict=True):
            _line(axes, triples, offset, label, drawn[method])
    for axes, what in zip(panels, [*PARTS, "NLL − marginal"], strict=False):
        axes.set_title(f"{what} (nats)", fontsize=10)
        axes.set_xticks(range(len(names)), lines)
        axes.set_xlabel(dose)
        _clean(axes)
    if lossy:
        panels[3].axhline(0.0, color="0.45", lw=1, ls=(0, (4, 3)), zorder=1)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), 3), frameon=False)
    return figure


def _line(axes: Axes, triples: Sequence[Triple], offset: float, label: str, style: Mapping[str, Any]) -> None:
    mean, low, high = np.asarray(triples, dtype=float).reshape(-1, 3).T
    error = np.clip([mean - low, high - mean], 0, None)
    x = np.arange(len(mean)) + offset
    axes.errorbar(x, mean, error, label=label, lw=1.4, ms=4, elinewidth=0.9, capsize=0, **style)
