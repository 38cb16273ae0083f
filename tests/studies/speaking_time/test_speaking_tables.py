"""Rank correlations, ratios and differences by hand; whole scripts are resampled, seeds averaged."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from bayes_adapters.errors import DataError
from examples.studies.speaking_time.intervals import resampled, spearman, variance_ratio
from examples.studies.speaking_time.records import TEST, Row
from examples.studies.speaking_time.tables import differences, tables, variances
from tests.refusals import refuses


def test_spearman_with_ties() -> None:
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 4, 3: covariance 3, variances 4.5 and 5.
    a, b = torch.tensor([1.0, 2.0, 2.0, 9.0]), torch.tensor([0.1, 0.2, 0.4, 0.3])
    assert spearman(a, b) == pytest.approx(3 / math.sqrt(4.5 * 5))
    assert spearman(a.log(), b.square()) == pytest.approx(spearman(a, b))
    assert spearman(a, -a) == pytest.approx(-1.0)
    assert math.isnan(spearman(a, torch.ones(4)))


def interval(a: torch.Tensor, b: torch.Tensor, names: list[str]) -> tuple[float, float, float]:
    return resampled(lambda both: spearman(both[:, 0], both[:, 1]), (torch.stack([a, b], 1), names))


def test_the_interval_draws_whole_scripts() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(40, generator=generator)
    b = a + torch.randn(40, generator=generator)
    names = [str(i) for i in range(40)]
    value, low, high = interval(a, b, names)
    assert low < value < high
    assert value == spearman(a, b)
    # Each row three times is not more evidence where the rows share a script, and would be where they do not.
    again = interval(a.repeat(3), b.repeat(3), names * 3)
    assert again == pytest.approx((value, low, high))
    _, narrow_low, narrow_high = interval(a.repeat(3), b.repeat(3), [str(i) for i in range(120)])
    assert narrow_high - narrow_low < 0.8 * (high - low)


def test_variance_ratio() -> None:
    assert variance_ratio(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.5, 1.5])) == 3.0
    with refuses(DataError, 0):
        variance_ratio(torch.ones(2), torch.zeros(3))


def test_samples_are_drawn_independently_and_their_rows_stay_together() -> None:
    a, b = torch.arange(60.0), torch.arange(60.0)
    names = [str(i) for i in range(60)]
    value, low, high = resampled(lambda x, y: float(x.mean() - y.mean()), (a, names), (b, names), draws=400)
    assert value == 0.0
    wanted = 1.96 * math.sqrt(2) * float(a.std()) / math.sqrt(60)  # the same rows of both would have no width
    assert (low, high) == pytest.approx((-wanted, wanted), rel=0.15)
    both = torch.stack([a, a + 7], 1)
    assert resampled(lambda x: float((x[:, 1] - x[:, 0]).mean()), (both, names), draws=20) == (7.0, 7.0, 7.0)


def said(method: str, error: Callable[[int, int], float], variance: Callable[[int, int], float]) -> list[Row]:
    """Forty recordings of twenty scripts and six French texts, with two seeds."""
    rows = []
    for seed in (0, 1):
        for i in range(40):
            mean, nll = 0.5 + error(i, seed), 0.1 * i + error(i, seed)
            script = f"script {i // 2}"
            rows.append(Row(method, seed, TEST, f"key-{i}", script, 80 - i, 0.5, mean, variance(i, seed), nll))
        for i in range(6):
            name = f"fr/{i}"
            rows.append(Row(method, seed, "fr", name, name, 9, math.nan, 1.0, 3 * variance(20, seed), math.nan))
    return rows


def test_differences_are_of_means_over_seeds() -> None:
    lora = said("lora", lambda i, s: 0.1, lambda i, s: 0.0)
    other = said("bayeslora-2025", lambda i, s: (0.2 + 0.2 * s) * (-1) ** i, lambda i, s: 1.0)
    ((reference, found),) = differences([*lora, *other], draws=50)
    assert reference == "lora"
    assert list(found) == ["bayeslora-2025"]
    assert found["bayeslora-2025"]["RMSE"] == pytest.approx((0.2, 0.2, 0.2))  # (.2 + .4) / 2 − .1
    value, low, high = found["bayeslora-2025"]["NLL"]
    assert value == pytest.approx(-0.1)
    assert (low, high) == pytest.approx((-0.1, -0.1))  # both recordings of a script are drawn, so their errors cancel
    assert differences(other, draws=50) == []


def test_a_pruned_method_is_compared_with_its_control() -> None:
    methods = ("lora", "bayeslora-2026-kl-3e-5", "lora-2026-ranks-3e-5")
    rows = [r for n, m in enumerate(methods) for r in said(m, lambda i, s, n=n: 0.1 * (n + 1), lambda i, s: 0.0)]
    found = dict(differences(rows, draws=20))
    assert list(found) == ["lora", "lora-2026-ranks-3e-5"]
    own = found["lora-2026-ranks-3e-5"]
    assert list(own) == ["bayeslora-2026-kl-3e-5"]
    assert own["bayeslora-2026-kl-3e-5"]["RMSE"].difference == pytest.approx(-0.1)


def test_correlations_and_ratios_are_averaged_over_seeds() -> None:
    sure = said("lora", lambda i, s: 0.1, lambda i, s: 0.0)
    rows = said("bayeslora-2025", lambda i, s: 1.0 + i * (-1) ** s, lambda i, s: (1.0 + i) * (1 + s))
    found = variances([*sure, *rows], draws=50)
    assert list(found) == ["bayeslora-2025"], "without variance there is nothing to say"
    own = found["bayeslora-2025"]
    assert own["error"][0] == pytest.approx((1 + spearman(torch.arange(40.0), (1 - torch.arange(40.0)).abs())) / 2)
    assert own["length"] == pytest.approx((-1, -1, -1))
    assert own["fr"][0] == pytest.approx(3 * 21 / 20.5)
    assert own["fr"][1] < own["fr"][0] < own["fr"][2]


def test_tables_leave_out_what_was_not_measured() -> None:
    rows = said("bayeslora-2025", lambda i, s: float(i), lambda i, s: 1.0 + i)
    assert list(tables([], rows)) == ["speaking_time", "speaking_time_variance"]
    lines = tables([], rows)["speaking_time_variance"]
    assert lines[0] == "| method | ρ(variance, abs. error) | ρ(variance, characters) | variance × on fr |"
    assert lines[2].startswith("| bayeslora-2025 | +1.00 [+1.00, +1.00] | −1.00 [−1.00, −1.00] | 3.07 [")
    sure = said("lora", lambda i, s: 0.1, lambda i, s: 0.0)
    assert list(tables([], sure)) == ["speaking_time"]
    assert len(tables([], [*sure, *rows])["speaking_time_differences"]) == 3
