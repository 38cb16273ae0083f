"""Dose and response: rank correlation within examples, losses beside the marginal predictor's, and their picture."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bayes_adapters import Prediction, predict
from bayes_adapters.analysis.dose_plots import dose_response_plot
from bayes_adapters.analysis.dose_response import dose_response
from bayes_adapters.analysis.marginal import Marginal
from bayes_adapters.errors import ConfigError, DataError
from tests.instrument import unchecked
from tests.refusals import refuses
from tests.reliability.parts import guide_of, heard


def says(total: Tensor, density: Tensor | None = None) -> Prediction:
    return Prediction(total, total, 0.75 * total, 0.25 * total, num_samples=4, log_density=density)


def by_hand(doses: list[float], values: list[float]) -> float:
    """Spearman's ρ: the correlation of counted ranks."""

    def ranks(v: list[float]) -> list[float]:
        return [sum(w < x for w in v) + (sum(w == x for w in v) - 1) / 2 for x in v]

    a, b = ranks(doses), ranks(values)
    ma, mb = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True))
    size = math.sqrt(sum((x - ma) ** 2 for x in a) * sum((y - mb) ** 2 for y in b))
    return top / size if size else 0.0


def test_the_correlation_is_that_within_each_example_whatever_the_unit_of_the_dose() -> None:
    doses = [-20.0, -5.0, 5.0, math.inf]
    values = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.6, 0.3], [0.2, 0.5, 0.3], [0.4, 0.7, 0.3]])
    shuffled = [2, 0, 3, 1]
    found = dose_response({doses[i]: says(values[i]) for i in shuffled}, draws=20)
    assert found.doses == tuple(doses)
    expected = [by_hand(doses, values[:, i].tolist()) for i in range(3)]
    assert found.spearman["total"][0] == pytest.approx(sum(expected) / 3)
    assert expected[2] == 0.0  # never changes: no response
    assert [round(t[0], 6) for t in found.parts["epistemic"]] == [round(0.25 * float(v.mean()), 6) for v in values]
    other = dose_response({float(k): says(v) for k, v in enumerate(values)}, draws=20)
    assert other.spearman == found.spearman


def test_two_doses_are_the_share_that_rises_minus_the_share_that_falls() -> None:
    first, second = torch.zeros(10), torch.tensor([1.0] * 7 + [-1.0] * 2 + [0.0])
    assert dose_response({0: says(first), 1: says(second)}).spearman["total"][0] == pytest.approx(0.5)


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    torch.manual_seed(0)
    covered = 0
    for seed in range(60):
        values = torch.randn(2, 40)
        _, low, high = dose_response({0: says(values[0]), 1: says(values[1])}, draws=200, seed=seed).parts["total"][0]
        covered += low <= 0.0 <= high
    assert 50 <= covered <= 60


def test_losses_stand_beside_those_of_the_marginal_predictor() -> None:
    targets = torch.tensor([1.0, 0.0, 0.0, 1.0])
    blind = Marginal.of(targets)
    right, wrong = torch.full((4,), -0.05), torch.full((4,), -3.0)
    doses = {0: says(torch.zeros(4), right), 1: says(torch.ones(4), wrong)}
    found = dose_response(doses, marginal=blind.nll(targets))
    assert [t[0] for t in found.nll] == pytest.approx([0.05, 3.0])
    assert [t[0] for t in found.excess] == pytest.approx([0.05 - math.log(2), 3.0 - math.log(2)])
    assert dose_response(doses).excess == ()


def test_a_guide_that_widens_far_away_rises_with_the_distance() -> None:
    guide = guide_of("pooled_context", scale=3.0, fallback="widen")
    doses = {s: predict(guide.model, guide, heard(shift=s, size=12), num_samples=64) for s in (0.0, 30.0)}
    found = dose_response(doses)
    assert found.spearman["epistemic"][0] == pytest.approx(8 / 12)  # four recordings are missing, and never change
    assert found.nll[0][0] > 0


def test_the_picture_shows_what_was_found() -> None:
    pytest.importorskip("matplotlib")
    values = torch.rand(3, 8)
    doses = {float(k): says(v, -v) for k, v in enumerate(values)}
    with_losses = dose_response(doses, marginal=torch.full((8,), 0.7), draws=20)
    figure = dose_response_plot({"one": with_losses, "two": with_losses}, ticks=["clean", "5 dB", "no recording"])
    assert len(figure.axes) == 4
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["clean", "5 dB", "no\nrecording"]
    assert figure.axes[0].containers[1].lines[0].get_ydata().tolist() == pytest.approx(
        [t[0] for t in with_losses.parts["total"]]
    )
    line = figure.axes[3].containers[0].lines[0]
    assert line.get_ydata().tolist() == pytest.approx([t[0] for t in with_losses.excess])
    assert f"{with_losses.spearman['total'][0]:+.2f}" in figure.legends[0].get_texts()[0].get_text()
    assert len(dose_response_plot({"one": dose_response({k: says(v.total) for k, v in doses.items()})}).axes) == 3
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=40)
    assert out.getvalue().startswith(b"\x89PNG")
    with refuses(DataError, "ticks", 3, 1):
        dose_response_plot({"one": with_losses}, ticks=["clean"])
    with refuses(DataError, "same doses"):
        dose_response_plot({"one": with_losses, "two": dose_response({7: says(values[0]), 8: says(values[1])})})


def test_errors() -> None:
    one = says(torch.zeros(4))
    for doses in ({}, {0.0: one}, {0.0: one, math.nan: one}):
        with refuses(ConfigError, "two doses"):
            dose_response(doses)
    with unchecked(), refuses(ConfigError, "clean", "ticks="):
        dose_response({"clean": one, "noisy": one})  # type: ignore[dict-item]
    with refuses(DataError, "NaN", [1.0]):
        dose_response({0: one, 1: says(torch.tensor([0.1, math.nan, 0.2, 0.3]))})
    with refuses(DataError, (4,), (5,)):
        dose_response({0: one, 1: says(torch.zeros(5))})
    with refuses(DataError, "1 of 2", "targets"):
        dose_response({0: one, 1: replace(one, log_density=torch.zeros(4))})
    with refuses(DataError, "marginal", (4,)):
        dose_response({0: one, 1: one}, marginal=torch.zeros(4))
