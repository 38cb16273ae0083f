"""Conformal prediction: thresholds by hand, and what is promised, over many draws of calibration and test data."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bayes_adapters import Bernoulli, Categorical, Gaussian, Prediction
from bayes_adapters.analysis.conformal import ConformalClasses, ConformalIntervals, ConformalQuantiles, selective
from bayes_adapters.analysis.selection import RiskThreshold
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import MultiLabel, Tasks
from tests.information import averaged
from tests.refusals import refuses

SPLITS, N, NEW = 200, 39, 200


def _margin(alpha: float) -> float:
    """Four standard errors of the mean coverage over splits: that of a split has variance α(1−α)(1/(n+2) + 1/new)."""
    return 4 * math.sqrt(alpha * (1 - alpha) * (1 / (N + 2) + 1 / NEW) / SPLITS)


def _classes(n: int) -> tuple[Tensor, Tensor]:
    """Over-confident probabilities of four classes, of examples of differing difficulty, and targets."""
    truth = 2 * torch.rand(n, 1) * torch.randn(n, 4)
    return (2.5 * truth + 0.3 * torch.randn(n, 4)).softmax(-1), torch.distributions.Categorical(logits=truth).sample()


@pytest.mark.parametrize(
    ("score", "randomised", "exact"),
    [("thr", False, True), ("aps", True, True), ("aps", False, False), ("raps", True, True), ("raps", False, False)],
)
def test_sets_of_classes_cover(score: str, randomised: bool, exact: bool) -> None:
    alpha = 0.2
    hits = 0.0
    for split in range(SPLITS):
        (p, y), (q, z) = _classes(N), _classes(NEW)
        found = ConformalClasses.fit(p, y, alpha=alpha, score=score, randomised=randomised, penalty=0.1, seed=split)
        hits += float(found.sets(q, seed=split).gather(1, z[:, None]).double().mean()) / SPLITS
    assert hits >= 1 - alpha - _margin(alpha)
    assert not exact or hits <= 1 - alpha + 1 / (N + 1) + _margin(alpha)


def test_intervals_and_quantiles_cover() -> None:
    hits = [0.0, 0.0]
    for _ in range(SPLITS):
        wide = torch.rand(N + NEW) + 0.1
        y = torch.distributions.StudentT(3.0).sample((N + NEW,)) * wide
        zero = torch.zeros(N + NEW)
        answer = Prediction(zero, zero, zero, zero, 1, variance=(0.3 * wide).square())
        low = torch.stack([-wide, 0.5 * wide], -1)
        held, new = (_part(answer, slice(None, N)), _part(answer, slice(N, None)))
        intervals = ConformalIntervals.fit(held, y[:N], alpha=0.2).sets(new)
        quantiles = ConformalQuantiles.fit(low[:N], y[:N], alpha=0.2).sets(low[N:])
        for i, ends in enumerate((intervals, quantiles)):
            assert ends.shape == (NEW, 2)
            hits[i] += float(((ends[:, 0] <= y[N:]) & (y[N:] <= ends[:, 1])).double().mean()) / SPLITS
    for share in hits:
        assert 0.8 - _margin(0.2) <= share <= 0.8 + 1 / (N + 1) + _margin(0.2)


def _part(answer: Prediction, rows: slice) -> Prediction:
    names = ("mean", "total", "aleatoric", "epistemic", "variance")
    given = [name for name in names if getattr(answer, name) is not None]
    return replace(answer, **{name: getattr(answer, name)[rows] for name in given})


def test_thresholds_by_hand() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64)
    targets = torch.tensor([1] * 9)
    calibration = p.expand(9, 3)
    assert ConformalClasses.fit(calibration, targets).threshold == pytest.approx(0.7)
    assert ConformalClasses.fit(calibration, targets, score="aps").threshold == pytest.approx(0.8)
    assert ConformalClasses.fit(calibration, targets, score="raps", penalty=0.2).threshold == pytest.approx(1.0)
    third = [ConformalClasses.fit(calibration, 2 * targets, score="raps", penalty=0.2, free=k) for k in (1, 2)]
    assert [found.threshold for found in third] == pytest.approx([1.4, 1.2], abs=1e-12)
    loose = ConformalClasses.fit(calibration, targets, score="aps", randomised=True)
    assert 0.5 <= loose.threshold < 0.8
    assert loose == ConformalClasses.fit(calibration, targets, score="aps", randomised=True)
    assert loose != ConformalClasses.fit(calibration, targets, score="aps", randomised=True, seed=1)


def test_the_quantile_is_that_of_n_plus_one() -> None:
    y = torch.arange(1.0, 20.0).double()  # 19 scores: 1 … 19
    answer = Prediction(*torch.zeros(4, 19).double(), 1, variance=torch.ones(19).double())
    for alpha, k in ((0.05, 19), (0.1, 18), (0.11, 18), (0.5, 10)):  # ⌈20 (1 − α)⌉
        assert ConformalIntervals.fit(answer, y, alpha=alpha).threshold == k


def test_predictions_of_every_kind() -> None:
    binary = averaged(Bernoulli(), torch.randn(3, 40, 1))
    y = torch.bernoulli(binary.mean)
    found = ConformalClasses.fit(binary, y)
    assert found.sets(binary).shape == (40, 2)
    two = torch.stack([1 - binary.mean, binary.mean], -1)
    torch.testing.assert_close(ConformalClasses.fit(two, y.long()).threshold, found.threshold)
    assert torch.equal(found.sets(binary)[:, 1], 1 - binary.mean.double() <= found.threshold)
    numbers = averaged(Gaussian(), torch.randn(3, 40, 1))
    ends = ConformalIntervals.fit(numbers, torch.randn(40)).sets(numbers)
    torch.testing.assert_close(ends.mean(-1), numbers.mean)
    assert ends.dtype == numbers.mean.dtype


def test_a_risk_is_kept() -> None:
    n, risk, loss, trusted = 60, 0.1, 0.0, 0.0
    for _ in range(SPLITS):
        u = torch.rand(n + NEW)
        wrong = torch.rand(n + NEW) < u.square()  # a third of the answers
        found = selective(u[:n], wrong[:n], risk=risk)
        chosen = u[n:] <= found.threshold
        loss += float((wrong[n:] & chosen).double().mean()) / SPLITS
        trusted += float(chosen.double().mean()) / SPLITS
    assert 0.6 * risk <= loss <= risk + 4 * math.sqrt(0.25 * risk / SPLITS / n)
    assert 0.4 < trusted < 0.75


def test_a_risk_by_hand() -> None:
    u, wrong = torch.arange(20.0), torch.arange(20) > 14
    for risk, largest in ((0.05, 14), (0.1, 15), (0.2, 17), (0.4, 19)):  # (errors + 1) / 21 ≤ risk
        assert selective(u, wrong, risk=risk).threshold == largest
        assert selective(u.flip(0), wrong.flip(0), risk=risk).threshold == largest
    assert selective(torch.zeros(20), wrong, risk=0.1) == (-math.inf, 0.0, pytest.approx(math.nan, nan_ok=True))
    assert selective(u, 0.5 * wrong, risk=0.1).threshold == 16


def test_a_risk_threshold_is_that_of_the_wrong_answers() -> None:
    p, y = _classes(200)
    entropy = torch.special.entr(p).sum(-1)
    answer = Prediction(p, entropy, entropy, 1 - entropy, 1)
    for part, uncertainty in (("total", entropy), ("epistemic", 1 - entropy)):
        found = RiskThreshold.fit(answer, y, risk=0.2, part=part)
        assert found.threshold == selective(uncertainty, p.argmax(-1) != y, risk=0.2).threshold
        assert torch.equal(found(answer), uncertainty <= found.threshold)
    both = averaged(Bernoulli(), torch.randn(3, 40, 1))
    sure = RiskThreshold.fit(both, (both.mean > 0.5).float(), risk=0.1)
    assert bool(sure(both).all())
    never = RiskThreshold.fit(both, (both.mean <= 0.5).float(), risk=0.03)
    assert never.threshold is None
    assert not bool(never(both).any())
    with refuses(DataError, 9, 8):
        RiskThreshold.fit(_part(answer, slice(None, 8)), y[:8])
    with refuses(ConfigError, "part", "sum", "total"):
        RiskThreshold.fit(answer, y, part="sum")


def test_what_is_refused() -> None:
    p, y = _classes(50)
    with refuses(DataError, 9, 8):
        ConformalClasses.fit(p[:8], y[:8])
    assert ConformalClasses.fit(p[:9], y[:9]).threshold <= 1
    with refuses(DataError, 99, 50):
        ConformalClasses.fit(p, y, alpha=0.01)
    with refuses(DataError, 19, 10):
        selective(torch.rand(10), torch.zeros(10), risk=0.05)
    with refuses(ConfigError, "alpha", 1.0):
        ConformalClasses.fit(p, y, alpha=1.0)
    with refuses(ConfigError, "risk", 0.0):
        selective(torch.rand(10), torch.zeros(10), risk=0.0)
    with refuses(ConfigError, "asp", "aps", "raps", "thr"):
        ConformalClasses.fit(p, y, score="asp")
    with refuses(ConfigError, -1.0):
        ConformalClasses.fit(p, y, score="raps", penalty=-1.0)
    with refuses(DataError, 4, 3):
        ConformalClasses.fit(p, y).sets(torch.ones(2, 3) / 3)
    with refuses(DataError, "2 to 2"):
        selective(torch.rand(50), torch.full((50,), 2.0), risk=0.1)
    with refuses(ConfigError, (5, 3, 2)):
        ConformalClasses.fit(torch.ones(5, 3, 2) / 2, torch.zeros(5, 3))
    with refuses(ConfigError, (5, 3)):
        ConformalClasses.fit(averaged(MultiLabel(3), torch.randn(2, 5, 3)), torch.zeros(5))
    numbers = averaged(Gaussian(), torch.randn(2, 9, 1))
    with refuses(ConfigError, "ConformalIntervals"):
        ConformalClasses.fit(numbers, y[:9])
    with refuses(ConfigError, "ConformalClasses"):
        ConformalIntervals.fit(averaged(Categorical(2), torch.randn(2, 9, 2)), y[:9])
    with refuses(DataError, 9, 8):
        ConformalIntervals.fit(_part(numbers, slice(None, 8)), torch.zeros(8))
    with refuses(DataError, (50, 3)):
        ConformalQuantiles.fit(torch.zeros(50, 3), torch.zeros(50))
    with refuses(DataError, "sort"):
        ConformalQuantiles.fit(torch.tensor([[1.0, 0.0]]).expand(50, 2), torch.zeros(50))
    both = Tasks({"topic": Categorical(3), "length": Gaussian()})
    with refuses(ConfigError, "topic"):
        ConformalClasses.fit(averaged(both, torch.randn(2, 40, both.num_outputs)), y[:40])
