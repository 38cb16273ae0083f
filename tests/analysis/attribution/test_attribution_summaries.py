"""Means with paired intervals, rows of an attribution, and its bars."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from bayes_adapters.analysis import plots
from bayes_adapters.analysis.attribution import Attribution
from bayes_adapters.analysis.bootstrap import paired_bootstrap
from bayes_adapters.errors import DataError
from tests.analysis.attribution.parts import game_batch, play
from tests.refusals import refuses


def mixed() -> Attribution:
    outputs = torch.tensor([0.0, 1.0, 2.0, 4.0])[:, None, None]
    return play(outputs, method="withhold", data=game_batch("ab", size=6, lacking={"a": [1, 4]}))


def test_means_are_paired_differences_of_the_uncertainties() -> None:
    found = mixed()
    means = found.means(draws=200, seed=4)
    assert list(means) == ["a", "b"]
    full, without = found.uncertainty[frozenset("ab")], found.uncertainty[frozenset("b")]
    expected = paired_bootstrap(torch.mean, full.total, without.total, draws=200, seed=4)
    assert tuple(means["a"]["total"]) == pytest.approx(tuple(expected), abs=1e-12)
    assert means["a"]["total"].difference == pytest.approx(found.changes["a"].total.mean().item())
    assert means["a"]["total"].low < means["a"]["total"].difference < means["a"]["total"].high
    grouped = found.means(groups=["x", "y", "z"] * 2, draws=200, seed=4)["a"]["total"]
    assert grouped.difference == means["a"]["total"].difference
    assert grouped != means["a"]["total"]


def test_rows() -> None:
    found, lacking = mixed(), torch.tensor([False, True, False, False, True, False])
    some = found[lacking]
    assert some.index.tolist() == [1, 4]
    assert (some.changes["a"].total == 0).all()
    torch.testing.assert_close(some.uncertainty[frozenset("a")].total, found.uncertainty[frozenset("a")].total[lacking])
    assert found[1:3].index.tolist() == [1, 2]
    with refuses(DataError, "Resampling", "two", 1):
        found[:1].means()


def test_bars_show_means_and_intervals() -> None:
    pytest.importorskip("matplotlib")
    values = {
        "audio": {"total": (-0.3, -0.4, -0.25), "aleatoric": (-0.35, -0.5, -0.3), "epistemic": (0.05, 0.0, 0.2)},
        "video": {"total": (0.1, 0.0, 0.2)},
    }
    figure = plots.attribution_bars(values, what="audio")
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["audio", "video"]
    total, _, epistemic = [c for c in axes.containers if type(c).__name__ == "BarContainer"]
    np.testing.assert_allclose([bar.get_width() for bar in total], [-0.3, 0.1])
    np.testing.assert_allclose([bar.get_width() for bar in epistemic], [0.05, np.nan])
    segments = total.errorbar.lines[2][0].get_segments()
    np.testing.assert_allclose([s[:, 0] for s in segments], [[-0.4, -0.25], [0.0, 0.2]])
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the first label is on top"
    assert "by audio (nats)" in axes.get_xlabel()
    assert len(figure.legends[0].get_texts()) == 3
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=40)
    assert out.getvalue().startswith(b"\x89PNG")
    with refuses(DataError, "attribution_bars", "one", "none"):
        plots.attribution_bars({})
