"""Calibration by simulation, importance weights and the target itself, against what is known in closed form."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from bayes_adapters.guides import Contextual, Delta, LowRank, MeanField, TrainingFree
from bayes_adapters.sites import Granularity, Part
from bayes_adapters.testing import (
    Calibration,
    LinearGaussian,
    NotApplicableError,
    calibration_plot,
    importance,
    simulate_calibration,
)
from tests.refusals import refuses

CORE = LinearGaussian(Part.CORE, Granularity.GLOBAL)


def simulated(variances: Tensor, shift: float = 0.0, count: int = 4000) -> Calibration:
    """What simulation finds of a q at the exact mean plus ``shift`` deviations, with these variances."""
    rng = torch.Generator().manual_seed(0)
    exact = torch.linalg.inv(CORE.precision)[0]
    off = torch.randn(count, 4, generator=rng).double() @ torch.linalg.cholesky(exact).T
    return Calibration(torch.special.ndtr(off / variances.sqrt() + shift))


def test_the_excess_of_the_exact_posterior_is_0_and_that_of_mean_field_is_known() -> None:
    """For p = Φ(√ρ Z), E p² = 1/4 + arcsin(ρ / (1 + ρ)) / 2π, ρ being the exact variance over that of q."""
    exact, factorised = torch.linalg.inv(CORE.precision)[0].diagonal(), 1 / CORE.precision[0].diagonal()
    ratio = exact / factorised
    known = float((6 / math.pi * torch.asin(ratio / (1 + ratio)) - 1).mean())
    assert known > 0.3, "a target without correlations would tell nothing"
    assert simulated(exact).excess() == pytest.approx(0.0, abs=0.05)
    assert simulated(factorised).excess() == pytest.approx(known, abs=0.05)
    assert simulated(4 * exact).excess() < -0.4
    inside = simulated(factorised).coverage([0.9])[0]
    reach = torch.special.ndtri(torch.tensor(0.95).double())
    assert inside == pytest.approx(float(torch.erf(reach / ratio.sqrt() / math.sqrt(2)).mean()), abs=0.02)


def test_a_bias_is_seen_in_few_simulations_and_a_wrong_width_is_none() -> None:
    exact = torch.linalg.inv(CORE.precision)[0].diagonal()
    assert simulated(exact, 1.0, count=60).asymmetry() < 1e-3
    for factor in (0.2, 1.0, 5.0):
        assert simulated(factor * exact, count=60).asymmetry() > 0.05


def test_asymmetry_is_the_two_sample_test_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    below = simulated(torch.ones(4).double(), 0.1, count=80).below[:, :1]
    distance = stats.ks_2samp(below[:, 0].numpy(), (1 - below[:, 0]).numpy()).statistic
    expected = stats.kstwobign.sf(distance * math.sqrt(80 / 2))
    assert 1e-4 < expected < 0.5
    assert Calibration(below).asymmetry() == pytest.approx(expected, rel=1e-6)


def test_fits_of_a_guide_that_can_be_right_cover_and_of_one_that_cannot_be_negative_do_not() -> None:
    target = LinearGaussian(Part.DIAGONAL, Granularity.GLOBAL)
    options: dict[str, Any] = {"learning_rate": 0.3, "num_particles": 4}
    right = simulate_calibration(MeanField, target, simulations=8, steps=30, **options)
    wrong = simulate_calibration(lambda m: MeanField(m, positive_mean=True), target, simulations=8, steps=8, **options)
    assert right.below.shape == (8, 2)
    assert right.coverage([0.9])[0] >= 0.75
    assert (wrong.below < 1e-3).double().mean() > 0.1, "true latents below zero lie below all of q"
    assert wrong.coverage([0.9])[0] < 0.7
    assert "8 simulations of 2 latents" in str(right)
    figure = calibration_plot({"right": right, "wrong": wrong})
    assert [axes.get_title() for axes in figure.axes] == ["right", "wrong", "coverage"]
    heights = [bar.get_height() for bar in figure.axes[0].patches if bar.get_width() < 0.5]
    assert sum(heights) == 16


def test_the_target_is_what_it_says() -> None:
    """Evidence by quadrature of the joint density over a grid of the two latents; posterior mean and variance too."""
    target = LinearGaussian(Part.DIAGONAL, Granularity.GLOBAL)
    start, slopes = target._map
    line = torch.linspace(-8, 8, 601).double()
    w = torch.cartesian_prod(line, line)
    noise = torch.distributions.Normal(start + w @ slopes.T, 0.5)
    joint = noise.log_prob(target.batch.targets.double()).sum(1) - 0.5 * w.square().sum(1) - math.log(2 * math.pi)
    area = float(line[1] - line[0]) ** 2
    assert float(joint.logsumexp(0)) + math.log(area) == pytest.approx(target.log_evidence, abs=1e-5)
    weight = joint.softmax(0)
    torch.testing.assert_close(weight @ w, target.mean[0], rtol=1e-4, atol=1e-6)
    second = (weight[:, None, None] * (w[:, :, None] * w[:, None, :])).sum(0)
    found = second - target.mean[0][:, None] * target.mean[0]
    torch.testing.assert_close(found, torch.linalg.inv(target.precision[0]), rtol=1e-4, atol=1e-7)


def test_importance_weights_of_the_exact_posterior_are_equal_and_of_mean_field_are_not() -> None:
    model = CORE.make_model()
    guide = LowRank(model, covariance_rank=4)
    covariance = torch.linalg.inv(CORE.precision)[0]
    values, vectors = torch.linalg.eigh(covariance)
    with torch.no_grad():
        guide.loc.copy_(CORE.mean[0])
        guide.log_scale.fill_(0.5 * math.log(float(values[0]) * 0.5))
        guide.factor.copy_(vectors * (values - 0.5 * values[0]).sqrt())
    found = importance(model, guide, CORE.batch, num_samples=400)
    assert found.verdict == "good"
    torch.testing.assert_close(found.log_weights, torch.full((400,), CORE.log_evidence).double(), rtol=0.0, atol=1e-2)
    assert float(found.log_evidence) == pytest.approx(CORE.log_evidence, abs=1e-2)
    halves = importance(model, guide, [CORE.batch[:5], CORE.batch[5:]], num_samples=400)
    torch.testing.assert_close(halves.log_weights, found.log_weights, rtol=0.0, atol=1e-3)
    narrow = MeanField(model, init_scale=0.02)
    with torch.no_grad():
        narrow.loc["core-global"].copy_(CORE.mean.reshape(1, 2, 2))
    assert importance(model, narrow, CORE.batch, num_samples=400).verdict == "unreliable"


def test_local_latents_have_a_weight_per_example() -> None:
    target = LinearGaussian(Part.CORE, Granularity.SEQUENCE)
    model = target.make_model()
    guide = MeanField(model, init_scale=1.0)
    with torch.no_grad():
        for loc in guide.loc.values():
            loc.zero_()  # q is the prior, so that no weight exceeds the largest likelihood
    found = importance(model, guide, target.batch, num_samples=400)
    assert found.log_weights.shape == (400, 12)
    assert found.khat.shape == (12,)
    start, slopes = target._map
    scale = (0.25 + slopes.square().sum(1)).sqrt()
    exact = torch.distributions.Normal(start, scale).log_prob(target.batch.targets.double())
    assert float((found.log_evidence - exact).abs().median()) < 0.3


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    local = LinearGaussian(Part.CORE, Granularity.TOKEN)
    with refuses(ConfigError, "token", "GLOBAL"):
        simulate_calibration(Contextual, local)
    with refuses(ConfigError, "simulations", 0):
        simulate_calibration(MeanField, CORE, simulations=0)
    with pytest.raises(NotApplicableError):
        simulate_calibration(lambda m: TrainingFree(m), LinearGaussian(Part.A, Granularity.GLOBAL))
    with refuses(DataError, [1.0]):
        Calibration(torch.rand(3, 1).double()).coverage([1.0])
    model = CORE.make_model()
    with pytest.raises(NotApplicableError):
        importance(model, Delta(model), CORE.batch)
    with refuses(ConfigError, "num_samples", 25, 3):
        importance(model, MeanField(model), CORE.batch, num_samples=3)
    with refuses(ConfigError, "batch.targets"):
        importance(model, MeanField(model), CORE.batch.without_targets())
    monkeypatch.setitem(sys.modules, "arviz", None)
    with refuses(MissingResourceError, "arviz"):
        importance(model, MeanField(model), CORE.batch)
