"""The scale of falling back: the smallest at which far contexts are answered no worse than blindly."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import Batch, Bernoulli, Categorical, Frames, predict
from bayes_adapters.analysis.marginal import Marginal
from bayes_adapters.errors import ConfigError, DataError, ScaleWarning
from bayes_adapters.guides import PooledContext
from bayes_adapters.likelihoods import Tagging
from bayes_adapters.models import StochasticCore
from bayes_adapters.reliability import Reliability, blend, calibrate_scale
from tests.helpers import CONTEXT, Linear, core_model, moments
from tests.instrument import unchecked
from tests.refusals import refuses, warns
from tests.reliability.parts import fitted, guide_of, heard

HALF = torch.tensor([0.0, 1.0] * 20)


def toy(bias: float) -> tuple[Any, Any, Batch]:
    """One core of one number, one token: the logit is ``m + κ E`` with E ~ N(μ, s²) where γ = 0."""
    torch.manual_seed(0)
    model = StochasticCore(Linear(), Bernoulli(), rank=1, alpha=1.0, targets=["query"], granularity="sequence")
    with torch.no_grad():
        model.installed["query"].lora_B.fill_(1.0)
        model.head.weight.fill_(0.5)
        model.head.bias.fill_(bias)
    guide = PooledContext(model, context_dim=CONTEXT, dim=2, reliability=Reliability(fitted(CONTEXT, shifts=(0.0,))))
    far = Frames(torch.full((40, 3, CONTEXT), 1e3), torch.ones(40, 3, dtype=torch.bool))
    return model, guide, Batch({"x": torch.ones(40, 1, 4)}, HALF, {"audio": far})


def logit(model: Any, guide: Any, batch: Batch) -> tuple[float, float]:
    """m + κ μ, and κ, from the layers themselves."""
    layer, x = model.installed["query"], batch.inputs["x"][0, 0]
    with torch.no_grad():
        plain = model.head.weight[0] @ (layer.base_layer.weight @ x + layer.base_layer.bias) + model.head.bias[0]
        kappa = model.head.weight[0] @ layer.lora_B[:, 0] * (layer.lora_A[0] @ x)
    loc = moments(guide, batch)[model.sites[0].name][0].flatten()[0]
    return float(plain + kappa * loc), abs(float(kappa))


def blind_excess(m: float, deviation: float) -> float:
    """NLL of labels of either kind at p = E sigmoid(N(m, deviation²)), by the trapezoidal rule, minus ln 2."""
    xi = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    weight = torch.exp(-0.5 * xi.square())
    p = float((torch.sigmoid(m + deviation * xi) * weight).sum() / weight.sum())
    return -0.5 * (math.log(p) + math.log(1 - p)) - math.log(2)


def test_the_scale_is_the_one_that_a_quadrature_finds() -> None:
    model, guide, batch = toy(bias=3.0)
    m, kappa = logit(model, guide, batch)
    low, high = 0.01, 1e4
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if blind_excess(m, middle * kappa) <= 0.02 else (middle, high)
    found = calibrate_scale(model, guide, batch, HALF, num_samples=1500)
    assert found.reached
    assert guide.reliability.scale == found.scale
    assert found.marginal == pytest.approx(math.log(2))
    assert found.scale / high == pytest.approx(1.02, abs=0.08)  # the last step is 4 % wide
    for scale, nll in found.tried.items():
        assert nll - math.log(2) == pytest.approx(blind_excess(m, scale * kappa), abs=0.03 + 0.05 * abs(nll))
    assert list(found.tried) == sorted(found.tried)


def test_a_trained_guide_is_no_worse_than_blind_far_away_and_as_it_was_nearby() -> None:
    model = core_model()
    with torch.no_grad():
        model.head.weight.mul_(3.0)  # sure of itself
    guide = guide_of("pooled_context", model, fallback="widen", scale=None)
    labels = torch.tensor([0.0, 1.0]).repeat(8)
    far, near = (Batch(b.inputs, labels, b.context) for b in (heard(shift=9.0, size=16), heard(size=16)))
    before, narrow = (predict(model, guide, batch, num_samples=64) for batch in (near, far))
    found = calibrate_scale(model, guide, [far[:9], far[9:]], labels, tolerance=0.15)
    assert found.reached
    assert -float(narrow.log_density.mean()) > found.marginal + 0.3
    wide = predict(model, guide, far, num_samples=64)
    assert found.nll == pytest.approx(-float(wide.log_density.mean()), rel=1e-5)
    trusted = guide.reliability.density(near.context["audio"]) == 1.0
    assert int(trusted.sum()) > 8
    assert torch.equal(predict(model, guide, near, num_samples=64).probs[trusted], before.probs[trusted])


def test_a_head_that_answers_noise_with_one_class_is_said() -> None:
    model, guide, batch = toy(bias=3.0)
    with torch.no_grad():
        model.head.weight.zero_()
    with warns(ScaleWarning):
        found = calibrate_scale(model, guide, batch, HALF, scales=(1.0, 2.0))
    assert (found.reached, found.scale) == (False, 1.0)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_blend_is_the_mixture_and_never_worse_than_its_blind_part(classes: int) -> None:
    model = core_model(likelihood=Bernoulli() if classes == 1 else Categorical(3))
    guide = guide_of("pooled_context", model, fallback="widen", scale=1.0)
    batch = heard(size=16)
    labels = torch.arange(16) % (2 if classes == 1 else 3)
    batch = Batch(batch.inputs, labels.float() if classes == 1 else labels, batch.context)
    answer, gamma = predict(model, guide, batch), torch.linspace(0, 1, 16)
    blind = Marginal.of(torch.tensor([1.0, 0.0, 0.0]) if classes == 1 else torch.tensor([0, 1, 2, 2]))
    found = blend(answer, gamma, blind, batch.targets)
    shares = blind.probs.float()
    p = found.probs if classes > 1 else torch.stack([1 - found.probs, found.probs], -1)
    torch.testing.assert_close(p[0], shares)
    torch.testing.assert_close(found.probs[-1], answer.probs[-1])
    torch.testing.assert_close(found.total, torch.special.entr(p).sum(-1))
    torch.testing.assert_close(found.aleatoric + found.epistemic, found.total)
    assert bool((found.epistemic >= 0).all())
    torch.testing.assert_close(found.epistemic[[0, -1]], torch.stack([torch.zeros(()), answer.epistemic[-1]]))
    torch.testing.assert_close(found.log_density, p[torch.arange(16), labels].log())
    bound = -(1 - gamma).log() + blind.nll(batch.targets).float()
    assert bool((-found.log_density <= bound + 1e-5).all())
    with refuses(ConfigError, 4, "num_classes="):
        blend(answer, gamma, Marginal.of(torch.arange(4)))
    with refuses(DataError, "weight", 16, 2):
        blend(answer, 2 * gamma, blind)
    with unchecked(), refuses(DataError, "weight", 0.5):
        blend(answer, 0.5, blind)  # type: ignore[arg-type]
    with unchecked(), refuses(DataError, "targets", 16, (1,)):
        blend(answer, gamma, blind, batch.targets[:1])
    with refuses(DataError, "targets", "log_density"):
        blend(replace(answer, log_density=None), gamma, blind, batch.targets)
    labels = torch.full((16, 2), 0.9)  # of two labels per example, whose uncertainties were summed
    with refuses(ConfigError, "labels", "prediction[task]"):
        blend(replace(answer, mean=labels), gamma, Marginal.of(torch.arange(2)))


def test_errors() -> None:
    model, guide, batch = toy(bias=0.0)
    near = heard(size=16)
    trusting = guide_of("pooled_context", core_model(), scale=1.0)
    with refuses(DataError, "trusted fully", "quantile="):
        calibrate_scale(trusting.model, trusting, Batch(near.inputs, torch.ones(16), {}), HALF)
    with refuses(DataError, "Batch 0", "targets"):
        calibrate_scale(model, guide, batch.without_targets(), HALF)
    several = Batch(near.inputs, torch.zeros(16, 7, dtype=torch.long), near.context)
    tagged = guide_of("pooled_context", core_model(likelihood=Tagging(2)), scale=1.0)
    with refuses(DataError, "Batch 0", (16, 7), "(B,)"):
        calibrate_scale(tagged.model, tagged, several, torch.zeros(9, dtype=torch.long))
    with refuses(DataError, "Batch 0", ["a", "b"]):
        calibrate_scale(model, guide, replace(batch, targets={"a": HALF, "b": HALF}), HALF)
    with refuses(DataError, "no batch"):
        calibrate_scale(model, guide, [], HALF)
    with refuses(ConfigError, "scales", [1.0]):
        calibrate_scale(model, guide, batch, HALF, scales=[1.0])
    with refuses(ConfigError, "tolerance", -1.0):
        calibrate_scale(model, guide, batch, HALF, tolerance=-1.0)
    guide.reliability = None
    with refuses(ConfigError, "PooledContext", "reliability="):
        calibrate_scale(model, guide, batch, HALF)


@pytest.mark.parametrize("targets", [torch.tensor([0, 2, 2, 1]), HALF, torch.tensor([1.0, 4.0, 2.5])])
def test_the_marginal_predictor_is_that_of_the_targets(targets: Tensor) -> None:
    found = Marginal.of(targets)
    if found.probs is None:
        fn: Any = torch.distributions.Normal(targets.double().mean(), targets.double().std())
        torch.testing.assert_close(found.nll(targets), -fn.log_prob(targets.double()))
    else:
        assert float(found.probs.sum()) == pytest.approx(1.0)
        torch.testing.assert_close(found.nll(targets), -found.probs.log()[targets.long()])
    with refuses(DataError, "shape (N,)", (0,)):
        Marginal.of(targets[:0])
    if found.probs is not None:
        wrong = torch.tensor([0, -100]) if targets.dtype == torch.int64 else torch.tensor([0.0, 0.4])
        with refuses(DataError, "class numbers", [-100] if targets.dtype == torch.int64 else f"{float(wrong[1])}"):
            found.nll(wrong)
    with refuses(DataError, "Training targets", [-100]):
        Marginal.of(torch.tensor([0, 1, -100]))
