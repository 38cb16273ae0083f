"""The picture of a calibration by simulation: histograms and coverage. It needs matplotlib and no display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bayes_adapters.analysis.plots import _clean, _grid, _styles
from bayes_adapters.testing.calibration import Calibration

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 10
_LEVELS = tuple(i / 20 for i in range(1, 20))


def calibration_plot(found: Mapping[str, Calibration]) -> Figure:
    """Draw, per guide, the histogram of Q(θ ≤ θ*) over all latents, and last the coverage of all guides.

    A flat histogram within the grey band is a calibrated guide; a hill in the middle one that is too wide, two hills at
    the ends one that is too narrow, a slope one whose means are biased. The band holds 95 % of the heights of a bin of
    uniform values (normal approximation, latents taken as independent). Write the figure with ``figure.savefig``.

    Args:
        found: name of a guide → what :func:`simulate_calibration` returned; at most seven.

    Raises:
        DataError: there is none, or more than can be told apart.
        MissingResourceError: matplotlib is not installed.

    >>> import torch
    >>> figure = calibration_plot({"exact": Calibration(torch.rand(20, 3).double())})
    >>> len(figure.axes)
    2
    """
    figure, _ = _grid(found, "calibration_plot", "guide")
    drawn = _styles(found)
    figure.set_size_inches(0.6 + 2.6 * (len(found) + 1), 2.9)
    panels = figure.subplots(1, len(found) + 1, squeeze=False)[0]
    for axes, (name, one) in zip(panels, found.items(), strict=False):
        values = one.below.flatten().cpu().numpy()
        expected = len(values) / _BINS
        band = 1.96 * np.sqrt(expected * (1 - 1 / _BINS))
        axes.axhspan(max(0.0, expected - band), expected + band, color="0.9", zorder=0)
        axes.hist(values, bins=np.linspace(0, 1, _BINS + 1), color=drawn[name]["color"], rwidth=0.9)
        axes.set(xlim=(0, 1), xlabel="Q(latent ≤ its true value)")
        axes.set_title(name, fontsize=10)
    panels[0].set_ylabel("latents")
    last = panels[-1]
    last.plot([0, 1], [0, 1], color="0.55", lw=1, ls=(0, (4, 3)))
    for name, one in found.items():
        last.plot(_LEVELS, one.coverage(_LEVELS), lw=1.6, label=name, color=drawn[name]["color"])
    last.set(xlim=(0, 1), ylim=(0, 1), xlabel="nominal level", ylabel="share inside")
    last.set_title("coverage", fontsize=10)
    last.legend(frameon=False, fontsize=8, loc="upper left")
    _clean(*panels)
    return figure
