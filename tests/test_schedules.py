"""KL schedules against their published values."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bayes_adapters.errors import ConfigError
from bayes_adapters.schedules import Blundell, Constant, Cyclic, LinearWarmup, as_schedule
from tests.refusals import refuses


def test_blundell_oracle() -> None:
    """M = 316: the weights of a window sum to 1, the last ten to 0.9990234, the last is one half."""
    weights = [Blundell(316)(t) for t in range(316)]
    assert sum(weights) == pytest.approx(1.0, abs=1e-12)
    assert sum(weights[-10:]) == pytest.approx(0.9990234, abs=5e-8)
    assert weights[-1] == pytest.approx(0.5, abs=1e-12)
    assert all(2 * a == pytest.approx(b) for a, b in pairwise(weights) if b > 1e-300)


@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_blundell_is_the_formula_for_small_windows(window: int) -> None:
    expected = [2.0**i / (2.0 ** (window + 1) - 1) for i in range(1, window + 1)]
    assert [Blundell(window)(t) for t in range(window)] == pytest.approx(expected)
    assert [Blundell(window, 3.0)(t + 5 * window) for t in range(window)] == pytest.approx([3 * w for w in expected])


def test_blundell_survives_long_windows() -> None:
    assert Blundell(100_000)(0) == 0.0
    assert Blundell(100_000)(99_999) == 0.5


def test_warmup_and_cycle() -> None:
    assert [LinearWarmup(4, 2.0)(t) for t in (0, 1, 3, 4, 1000)] == [0.5, 1.0, 2.0, 2.0, 2.0]
    cycle = Cyclic(period=10, ramp=0.5, weight=2.0)
    assert [cycle(t) for t in range(10)] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert [cycle(t + 30) for t in range(10)] == [cycle(t) for t in range(10)]


def test_as_schedule() -> None:
    assert as_schedule(0.25) == Constant(0.25)
    assert as_schedule(0.25)(10**6) == 0.25
    schedule = LinearWarmup(3)
    assert as_schedule(schedule) is schedule


@pytest.mark.parametrize(
    ("build", "facts"),
    [
        (lambda: Constant(-0.1), (0, -0.1)),
        (lambda: Constant(float("nan")), (0, "nan")),
        (lambda: LinearWarmup(0), ("steps", 1, 0)),
        (lambda: LinearWarmup(3, -1.0), (0, -1.0)),
        (lambda: Cyclic(0), ("period", 1, 0)),
        (lambda: Cyclic(3, ramp=0.0), ("ramp", 1, 0.0)),
        (lambda: Cyclic(3, ramp=1.5), ("ramp", 1, 1.5)),
        (lambda: Blundell(0), ("window", 1, 0)),
        (lambda: Constant(float("inf")), (0, "inf")),
    ],
)
def test_errors(build: object, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        build()  # type: ignore[operator]
