"""Figures: what is drawn is the data given, and they need neither a display nor pyplot."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
import torch

from bayes_adapters.analysis import metrics, plots
from bayes_adapters.errors import DataError, MissingResourceError
from tests.refusals import refuses

pytest.importorskip("matplotlib")
METHODS = ["lora-text", "lora-fusion", "c-lora", "caliber-g", "caliber-x", "caliber-shared-kv"]


def _bins() -> metrics.ReliabilityBins:
    return metrics.reliability_bins(torch.tensor([0.9, 0.9, 0.6, 0.2]), torch.tensor([1, 0, 1, 0]))


def _png(figure) -> bytes:  # type: ignore[no-untyped-def]
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=40)
    return out.getvalue()


def test_reliability_diagram_shows_the_filled_bins_and_their_error() -> None:
    figure = plots.reliability_diagram({m: {"clean": _bins(), "noise": _bins()} for m in METHODS}, least=1)
    assert len(figure.axes) == 2 * len(METHODS)
    line = figure.axes[0].lines[1]
    np.testing.assert_allclose(line.get_xdata(), [0.6, 0.8, 0.9], atol=1e-6)
    np.testing.assert_allclose(line.get_ydata(), [1, 1, 0.5])
    ece = (0.4 + 0.2 + 2 * 0.4) / 4
    assert figure.axes[0].get_title() == f"lora-text\nECE: clean {ece:.3f}, noise {ece:.3f}"
    heights = sum(bar.get_height() for bar in figure.axes[1].patches)
    assert heights == pytest.approx(2)  # shares of both lines add up to one each
    sparse = plots.reliability_diagram({"lora-text": {"clean": _bins()}}, least=2)
    np.testing.assert_allclose(sparse.axes[0].lines[1].get_xdata(), [0.9], atol=1e-6)
    assert sparse.axes[0].get_title() == f"lora-text\nECE: clean {ece:.3f}"  # what is not drawn still counts
    assert _png(figure).startswith(b"\x89PNG")


def test_risk_coverage_plot_names_the_area() -> None:
    u, e = torch.arange(100.0), torch.arange(100) >= 80
    figure = plots.risk_coverage_plot({"c-lora": metrics.risk_coverage(u, e)})
    (text,) = figure.axes[0].get_legend().get_texts()
    assert text.get_text() == f"c-lora  (AURC {metrics.aurc(u, e):.3f})"
    assert figure.axes[0].lines[0].get_ydata()[-1] == pytest.approx(0.2)
    assert _png(figure).startswith(b"\x89PNG")


def test_uncertainty_by_condition_has_a_panel_for_each_noise_and_part() -> None:
    def triple(m: float) -> dict[str, tuple[float, float, float]]:
        return dict.fromkeys(plots.PARTS, (m, m - 0.02, m + 0.03))

    values = {m: {"clean": triple(0.1), "white@5": triple(0.4), "babble@-5": triple(0.5)} for m in METHODS}
    figure = plots.uncertainty_by_condition(values)
    grid = np.array(figure.axes).reshape(3, 2)
    assert [a.get_title() for a in grid[0]] == ["white noise", "babble noise"]
    assert [a.get_ylabel() for a in grid[:, 0]] == ["total (nats)", "aleatoric (nats)", "epistemic (nats)"]
    assert [t.get_text() for t in grid[2, 0].get_xticklabels()] == ["clean", "20", "10", "5", "0", "−5", "missing"]
    for column, expected in (
        (0, [0.1] + [np.nan] * 2 + [0.4] + [np.nan] * 3),
        (1, [0.1] + [np.nan] * 4 + [0.5, np.nan]),
    ):
        drawn = grid[2, column].containers[0]
        np.testing.assert_allclose(drawn.lines[0].get_ydata(), expected)
        np.testing.assert_allclose(drawn.lines[2][0].get_segments()[0][:, 1], [0.08, 0.13])  # the interval given
    assert len(figure.legends[0].get_texts()) == len(METHODS)
    reference = [line.get_ydata()[0] for line in grid[0, 0].lines if len(set(line.get_ydata())) == 1]
    assert np.log(2) in reference
    assert _png(figure).startswith(b"\x89PNG")


def test_ranks_of_stages_and_of_encoders_do_not_hide_each_other() -> None:
    ranks = {f"{net}.layers.{s}.blocks.{b}.q": r for net, s, b, r in (("x", 0, 0, 1), ("x", 0, 1, 2), ("x", 1, 0, 3))}
    ranks |= {"x.head": 5, "y.layer.0.q": 4}
    axes = plots.ranks_by_layer(ranks, 8).axes[0]
    rows = ["x.layers.0.blocks.*.q", "x.layers.1.blocks.*.q", "x.head", "y.layer.*.q"]
    assert [t.get_text() for t in axes.get_yticklabels()] == rows
    assert sorted(t.get_text() for t in axes.texts) == ["1", "2", "3", "4", "5"]


def test_colours_stay_apart_and_more_methods_than_colours_are_refused() -> None:
    assert len(set(plots.COLOURS)) == len(set(plots.MARKERS)) == 7
    with refuses(DataError, 7, 8):
        plots.risk_coverage_plot({str(i): ([1.0], [0.0]) for i in range(8)})
    for function in (plots.reliability_diagram, plots.risk_coverage_plot, plots.uncertainty_by_condition):
        with refuses(DataError, function.__name__, "one", "none"):
            function({})  # type: ignore[operator]
    with refuses(DataError, "curves['a']", "(N,)", "(1, 1)"):
        plots.risk_coverage_plot({"a": ([[1.0]], [[0.0]])})


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with refuses(MissingResourceError, "matplotlib", "pip install '.[demo]'"):
        plots.risk_coverage_plot({"a": ([1.0], [0.0])})


def test_importing_and_drawing_leave_pyplot_alone() -> None:
    code = (
        "import sys; from bayes_adapters.analysis import plots; assert 'matplotlib' not in sys.modules;"
        "plots.risk_coverage_plot({'a': ([1.0], [0.5])}).savefig('/dev/null', format='png');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
