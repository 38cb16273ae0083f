"""Intervals over seeds and units: coverage by simulation, and every formula beside another way to compute it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from bayes_adapters import student
from bayes_adapters.analysis import metrics
from bayes_adapters.analysis.intervals import Interval, _stretched, ece_floor, holm, pigeonhole, seeds_and_units
from bayes_adapters.errors import ConfigError, DataError
from tests.refusals import refuses

UNITS = 60


def _table(seeds: int, seed_sd: float, unit_sd: float = 1.0, units: int = UNITS) -> Tensor:
    """True differences are 0."""
    rows, columns = torch.randn(seeds, 1), torch.randn(1, units)
    return (seed_sd * rows + unit_sd * columns + torch.randn(seeds, units)).double()


EQUAL = [(5, 1.0), (10, 1.0), (5, math.sqrt(5 / UNITS)), (10, math.sqrt(10 / UNITS))]
"""(R, σ_seed) beside σ_unit = 1: equal variances, and equal shares σ²/R and σ²/n of the variance of the mean."""


@pytest.mark.parametrize(("seeds", "seed_sd"), EQUAL)
def test_the_two_way_interval_covers(seeds: int, seed_sd: float) -> None:
    found = [seeds_and_units(_table(seeds, seed_sd)) for _ in range(600)]
    assert 0.93 <= np.mean([one.low <= 0 <= one.high for one in found]) <= 0.97
    assert all((one.p_value < 0.05) == (not one.low <= 0 <= one.high) for one in found)
    assert np.mean([one.seed_variance for one in found]) == pytest.approx(seed_sd**2, rel=0.15)
    assert np.mean([one.unit_variance for one in found]) == pytest.approx(1, rel=0.1)
    assert np.mean([one.both_variance for one in found]) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(("seeds", "seed_sd"), EQUAL)
def test_the_pigeonhole_interval_covers(seeds: int, seed_sd: float) -> None:
    rng = np.random.default_rng(0)  # the same draws for every table, of which each is new
    columns = torch.from_numpy(rng.multinomial(UNITS, np.full(UNITS, 1 / UNITS), 300)).double()
    rows = torch.from_numpy(rng.multinomial(seeds, np.full(seeds, 1 / seeds), 300)).double()
    hits = 0
    for _ in range(500):
        d = _table(seeds, seed_sd)
        found = _stretched(d.mean(1), columns @ d.T / UNITS, rows, UNITS, 0.95)
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / 500 <= 0.97


def test_the_pigeonhole_interval_of_an_auc_covers() -> None:
    """Two methods whose seeds differ in skill and whose noise is partly the unit's own, so that neither is better."""
    seeds, n, hits = 5, 80, 0
    rng = np.random.default_rng(0)
    times = torch.from_numpy(rng.multinomial(n, np.full(n, 1 / n), 300)).double()
    rows = torch.from_numpy(rng.multinomial(seeds, np.full(seeds, 1 / seeds), 300)).double()
    y = torch.arange(n) % 2 == 1
    one, zero = times[:, y], times[:, ~y]
    for _ in range(400):
        shared = 0.5 * torch.randn(n)
        skill, own, rest = torch.randn(2, seeds, 1), torch.randn(2, 1, n), torch.randn(2, seeds, n)
        scores = (1 + 0.6 * skill) * (y.double() - 0.5) + shared + 0.7 * own + 0.5 * rest
        above = (scores[..., y][..., None] > scores[..., ~y][..., None, :]).double()
        differs = above[0] - above[1]  # (seeds, positives, negatives), whose weighted mean is the difference of AUCs
        table = torch.einsum("vi,sij,vj->vs", one, differs, zero) / (one.sum(1) * zero.sum(1))[:, None]
        found = _stretched(differs.mean((1, 2)), table, rows, n, 0.95)
        hits += found.low <= 0 <= found.high
    assert 0.93 <= hits / 400 <= 0.97


def test_mean_squares_by_hand() -> None:
    d = _table(4, 1.0, units=7)
    seeds, units = d.shape
    ms_s = units * d.mean(1).var()
    ms_u = seeds * d.mean(0).var()
    ms_e = (((d - d.mean()).square().sum()) - (seeds - 1) * ms_s - (units - 1) * ms_u) / ((seeds - 1) * (units - 1))
    v = (ms_s + ms_u - ms_e) / (seeds * units)
    dof = (ms_s + ms_u - ms_e) ** 2 / (
        ms_s**2 / (seeds - 1) + ms_u**2 / (units - 1) + ms_e**2 / ((seeds - 1) * (units - 1))
    )
    assert min(ms_s, ms_u) > ms_e
    found = seeds_and_units(d)
    assert found.dof == pytest.approx(max(float(dof), 3))
    assert found.high - found.difference == pytest.approx(student.quantile(0.95, found.dof) * math.sqrt(v))
    assert found.high + found.low == pytest.approx(2 * float(d.mean()))
    assert found.seed_variance == pytest.approx(float((ms_s - ms_e) / units))
    assert found.unit_variance == pytest.approx(float((ms_u - ms_e) / seeds))
    turned = seeds_and_units(d.T)
    assert turned[:5] == pytest.approx(found[:5])
    assert seeds_and_units(d, level=0.5).high < found.high


def test_a_component_below_the_rest_is_zero() -> None:
    d = _table(6, 0.0, units=50)
    flat = d - d.mean(1, keepdim=True)  # no seed differs from another
    found = seeds_and_units(flat)
    assert found.seed_variance == 0
    half = found.high - found.difference
    assert half == pytest.approx(student.quantile(0.95, 49) * float(flat.mean(0).std()) / math.sqrt(50))
    both = seeds_and_units(flat - flat.mean(0))
    assert both.dof == 5 * 49
    assert both.high == pytest.approx(student.quantile(0.95, 245) * math.sqrt(both.both_variance / 300))


def test_equal_methods_and_a_constant_difference() -> None:
    for same, p in ((0.0, 1.0), (0.25, 0.0)):
        found = seeds_and_units(torch.full((3, 4), same))
        assert found == (same, same, same, p, 2.0, 0.0, 0.0, 0.0)
        assert pigeonhole(torch.mean, torch.full((3, 4), same), torch.zeros(3, 4), draws=20, seed=0) == found


def test_the_pigeonhole_of_a_mean_is_the_two_way_interval() -> None:
    a, b = _table(6, 1.0), _table(6, 0.3)
    one, other = pigeonhole(torch.mean, a, b, draws=600, seed=0), seeds_and_units(a - b)
    assert one.difference == pytest.approx(other.difference)
    assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.15)
    assert one.dof == pytest.approx(other.dof, rel=0.1)
    for name in ("seed_variance", "unit_variance", "both_variance"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=0.2), name
    assert one == pigeonhole(torch.mean, a, b, draws=600, seed=0)
    assert one != pigeonhole(torch.mean, a, b, draws=600, seed=1)


def test_whole_groups_are_drawn() -> None:
    unit = _table(5, 0.0, units=20)
    rows = unit.repeat_interleave(4, 1)  # four equal examples per unit
    zero = torch.zeros_like(rows)
    groups = torch.arange(20).repeat_interleave(4)
    found = pigeonhole(torch.mean, rows, zero, groups=groups, draws=300, seed=3)
    assert found == pytest.approx(pigeonhole(torch.mean, unit, zero[:, :20], draws=300, seed=3))
    names = [f"speaker {i}" for i in groups.tolist()]
    assert found == pigeonhole(torch.mean, rows, zero, groups=names, draws=300, seed=3)
    alone = pigeonhole(torch.mean, rows, zero, draws=300, seed=3)
    assert alone.high - alone.low < found.high - found.low


def test_a_metric_that_is_no_mean() -> None:
    y = torch.arange(60) % 2
    good = torch.sigmoid(3 * (y - 0.5) + torch.randn(5, 60))
    poor = torch.sigmoid(0.5 * (y - 0.5) + torch.randn(5, 60))
    targets = y.expand(5, -1)
    found = pigeonhole(metrics.auc, (good, targets), (poor, targets), draws=40, seed=0)
    by_seed = [metrics.auc(g, y) - metrics.auc(p, y) for g, p in zip(good, poor, strict=True)]
    assert found.difference == pytest.approx(np.mean(by_seed))
    assert 0 < found.low < found.difference < found.high
    assert found.p_value < 0.05


def test_students_t() -> None:
    stats = pytest.importorskip("scipy.stats")
    for dof, level in itertools.product((1.0, 1.5, 2.7, 4.0, 30.0, 1e4, 1e7), (0.5, 0.9, 0.95, 0.999)):
        assert student.quantile(level, dof) == pytest.approx(stats.t.ppf((1 + level) / 2, dof), rel=1e-5)
        assert student.within(2.0, dof) == pytest.approx(1 - 2 * stats.t.sf(2.0, dof), abs=1e-7)
    assert student.within(60.0, 50.0) == pytest.approx(1, abs=1e-12)


def test_holm_closes_bonferroni() -> None:
    """A hypothesis is rejected where Bonferroni rejects every set of hypotheses that holds it."""
    p = torch.rand(6).square().double().tolist()
    p[3] = p[1]
    sets = [s for k in range(1, 7) for s in itertools.combinations(range(6), k)]
    closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(6)]
    assert holm(p) == pytest.approx(closed)
    assert holm([]) == []


@pytest.mark.parametrize("classes", [2, 4])
def test_the_floor_is_the_error_of_labels_drawn_from_the_probabilities(classes: int) -> None:
    p = (2 * torch.randn(150, classes)).softmax(-1)
    drawn = torch.distributions.Categorical(p).sample((400,))
    values = torch.tensor([metrics.ece(p, y) for y in drawn])
    found = ece_floor(p, seed=1)
    assert found.mean == pytest.approx(float(values.mean()), abs=0.003)
    assert found.low == pytest.approx(float(values.quantile(0.025)), abs=0.01)
    assert found.high == pytest.approx(float(values.quantile(0.975)), abs=0.01)
    if classes == 2:
        assert ece_floor(p[:, 1], seed=1) == pytest.approx(found, abs=1e-6)
    assert ece_floor(p, 6000, draws=100, seed=1).mean < found.mean / 4
    assert ece_floor(p, 40, draws=100, seed=1).mean > found.mean


def test_what_is_refused() -> None:
    with refuses(DataError, (12,)):
        seeds_and_units(torch.zeros(12))
    with refuses(DataError, 2, 1, 5):
        seeds_and_units(torch.zeros(1, 5))
    with refuses(DataError, [1, 2]):
        seeds_and_units(torch.zeros(3, 4).index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(math.nan)))
    with refuses(ConfigError, "level", 95):
        seeds_and_units(torch.zeros(3, 4), level=95)
    with refuses(DataError, (3, 4), (3, 5)):
        pigeonhole(torch.mean, torch.zeros(3, 4), torch.zeros(3, 5), seed=0)
    with refuses(DataError, (3,)):
        pigeonhole(torch.mean, torch.zeros(3), torch.zeros(3), seed=0)
    with refuses(DataError, 5):
        pigeonhole(torch.mean, torch.zeros(3, 4), torch.zeros(3, 4), groups=[0] * 5, seed=0)
    with refuses(DataError, 3, 1):
        pigeonhole(torch.mean, torch.zeros(3, 4), torch.zeros(3, 4), groups=[0] * 4, seed=0)
    ones = torch.ones(3, 4), torch.ones(3, 4, dtype=torch.long)
    with refuses(DataError, "AUC"):
        pigeonhole(metrics.auc, ones, ones, seed=0)
    with refuses(DataError, 1.5):
        holm([0.5, 1.5])
    with refuses(DataError, 0):
        ece_floor(torch.rand(5), 0, seed=0)


def test_draws_without_a_metric_are_left_out() -> None:
    y = torch.tensor([1, 0, 0, 0, 0, 0])  # a third of the draws have one class
    score = torch.rand(3, 6)
    found = pigeonhole(metrics.auc, (score, y.expand(3, -1)), (score.flip(0), y.expand(3, -1)), draws=60, seed=0)
    assert isinstance(found, Interval)
    assert all(map(math.isfinite, found))
