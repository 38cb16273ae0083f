"""Calibration after training, against golden-section search, autograd and the definition of the split."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bayes_adapters import Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, Prediction, Tagging
from bayes_adapters.analysis import metrics
from bayes_adapters.analysis._calibration_checks import require_tensor
from bayes_adapters.analysis.calibration import DeviationScaling, TemperatureScaling, VectorScaling
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import Likelihood, Masks, MultiLabel, Tasks
from tests.information import averaged, of_classes
from tests.refusals import refuses


def _answer(likelihood: Likelihood, outputs: Tensor) -> Prediction:
    """The prediction of draws (S, B, K), with each draw's mean."""
    return replace(averaged(likelihood, outputs), samples=likelihood.draw_mean(likelihood.distribution(outputs)))


def _classes(n: int = 400, classes: int = 3, draws: int = 5, sharp: float = 2.5) -> tuple[Prediction, Tensor]:
    """Over-confident draws that differ, and targets."""
    truth = torch.randn(n, classes)
    y = torch.distributions.Categorical(logits=truth).sample()
    return _answer(Categorical(classes), sharp * (truth + 0.5 * torch.randn(draws, n, classes))), y


def _golden(loss, low: float, high: float) -> float:
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-9:
        one, two = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, two) if loss(one) < loss(two) else (one, high)
    return (low + high) / 2


def test_temperature_is_the_minimum_of_the_loss() -> None:
    answer, y = _classes()
    found = TemperatureScaling.fit(answer, y).temperature
    logs = answer.mean.double().log()

    def loss(t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logs / t, y))

    assert found > 1.5
    assert found == pytest.approx(_golden(loss, 0.1, 20), abs=1e-6)
    at = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logs * at, y).backward()
    assert abs(at.grad.item()) < 1e-13
    assert TemperatureScaling.fit(answer.mean, y).temperature == found
    scaled = TemperatureScaling(found)(answer)
    torch.testing.assert_close(scaled.mean, (logs / found).softmax(-1).float())
    assert metrics.nll(scaled.mean, y) == pytest.approx(loss(found), abs=1e-6)


def test_temperature_of_the_words_of_a_vocabulary() -> None:
    """A square of 50,000 classes would be 20 GB."""
    logits, y = torch.randn(12, 50_000, dtype=torch.float64).mul(3.0), torch.arange(12)
    logits[y, y] += 12.0

    def loss(t: float) -> float:
        return float(torch.nn.functional.cross_entropy(logits / t, y))

    found = TemperatureScaling.fit(logits.softmax(-1), y).temperature
    assert found == pytest.approx(_golden(loss, 0.1, 20), abs=1e-6)


def test_vector_scaling_has_no_gradient_left_and_beats_temperature() -> None:
    answer, y = _classes()
    found = VectorScaling.fit(answer, y)
    weight, bias = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (found.weight, found.bias))
    logs = answer.mean.double().log()
    loss = torch.nn.functional.cross_entropy(weight * logs + bias, y)
    loss.backward()
    assert weight.grad.abs().max() < 1e-12
    assert bias.grad.abs().max() < 1e-12
    assert bias.sum().item() == pytest.approx(0, abs=1e-12)
    assert loss.item() < metrics.nll(TemperatureScaling.fit(answer, y)(answer).mean, y)
    torch.testing.assert_close(found(answer).mean, (weight * logs + bias).softmax(-1).detach().float())


@pytest.mark.parametrize("sharp", [0.01, 100.0])
@pytest.mark.parametrize("classes", [2, 5])
def test_answers_that_are_certain_or_nearly_equal(sharp: float, classes: int) -> None:
    """Far from T = 1, where a float32 probability is 0 or 1 and the loss has lost its curvature."""
    truth = torch.randn(300, classes)
    y = torch.distributions.Categorical(logits=truth).sample()
    p = (sharp * (truth + 0.3 * torch.randn(300, classes))).softmax(-1)
    logs = p.double().clamp(min=torch.finfo(torch.float32).tiny).log()
    found = TemperatureScaling.fit(p, y).temperature
    at = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logs * at, y).backward()
    assert abs(at.grad.item()) < 1e-10
    vector = VectorScaling.fit(p, y)
    weight = torch.tensor(vector.weight, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(vector.bias, dtype=torch.float64)
    torch.nn.functional.cross_entropy(weight * logs + bias, y).backward()
    assert weight.grad.abs().max() < 1e-10


def test_what_was_spoiled_is_put_right() -> None:
    """Probabilities spoiled by known numbers, and soft targets that are the unspoiled ones: the fit inverts them."""
    right = torch.randn(200).sigmoid().double()
    spoiled = torch.sigmoid(3 * right.logit())
    assert TemperatureScaling.fit(spoiled, right).temperature == pytest.approx(3, rel=1e-9)
    shifted = torch.sigmoid(2 * right.logit() - 1.0)
    found = VectorScaling.fit(shifted, right)
    torch.testing.assert_close(found.rows(torch.stack([1 - shifted, shifted], -1))[:, 1], right)
    assert found.weight == pytest.approx([0.5, 0.5])
    assert found.bias == pytest.approx([-0.25, 0.25])


@pytest.mark.parametrize(
    "scaling", [TemperatureScaling(1.7), TemperatureScaling(0.4), VectorScaling([2.0, 0.7], [1, 0.0])]
)
@pytest.mark.parametrize("kept", [True, False])
def test_the_split_adds_up(scaling: TemperatureScaling, kept: bool) -> None:
    for answer in (_answer(Bernoulli(), 3 * torch.randn(6, 40, 1)), _answer(Categorical(2), 3 * torch.randn(6, 40, 2))):
        scaled = scaling(answer if kept else replace(answer, samples=None))
        rows = scaled.mean if scaled.mean.dim() == 2 else torch.stack([1 - scaled.mean, scaled.mean], -1)
        torch.testing.assert_close(scaled.total.double(), metrics.entropy(rows), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(scaled.total, scaled.aleatoric + scaled.epistemic)
        assert bool((scaled.epistemic > 0).all() and (scaled.aleatoric > 0).all())
        share = scaled.epistemic / scaled.total
        if kept:
            draws = scaled.samples if scaled.mean.dim() == 2 else torch.stack([1 - scaled.samples, scaled.samples], -1)
            parts = of_classes(draws)
            torch.testing.assert_close(share.double(), parts.epistemic / parts.total, atol=1e-5, rtol=1e-4)
        else:
            torch.testing.assert_close(share, answer.epistemic / answer.total)


def test_a_temperature_of_one_changes_nothing() -> None:
    answer, _ = _classes()
    scaled = TemperatureScaling(1.0)(replace(answer, log_density=torch.zeros(400)))
    for name in ("mean", "total", "aleatoric", "epistemic", "samples"):
        torch.testing.assert_close(getattr(scaled, name), getattr(answer, name), atol=1e-6, rtol=1e-5)
    assert scaled.log_density is None
    assert scaled.mean.dtype == answer.mean.dtype


def test_draws_are_scaled_each() -> None:
    answer, _ = _classes()
    scaled = TemperatureScaling(2.0)(answer)
    torch.testing.assert_close(scaled.samples, (answer.samples.double().log() / 2).softmax(-1).float())


def test_padding_and_tokens_without_a_label_count_nowhere() -> None:
    n, tokens = 30, 5
    y = torch.randint(3, (n, tokens))
    outputs = torch.nn.functional.one_hot(y, 3) + torch.randn(n, tokens, 3) + torch.randn(4, n, tokens, 3)
    real = torch.arange(tokens) < torch.randint(1, tokens + 1, (n, 1))
    likelihood = Tagging(3)
    fn = likelihood.of_tokens(outputs, real)
    answer = replace(likelihood.predict(likelihood.summarise(fn), 4), samples=likelihood.draw_mean(fn))
    targets = y.where(torch.rand(n, tokens) < 0.8, -100)
    known = real & (targets != -100)
    for scaling in (TemperatureScaling, VectorScaling):
        found = scaling.fit(answer, targets)
        assert found == scaling.fit(answer.mean[known], targets[known])
        scaled = found(answer)
        for value in (scaled.mean, scaled.total, scaled.aleatoric, scaled.epistemic, scaled.samples.movedim(0, 2)):
            assert not value[~real].any()
            assert bool((value[real] > 0).all())


@pytest.mark.parametrize("classes", [1, 3])
def test_padding_of_masks_counts_nowhere(classes: int) -> None:
    """Patches in the lower quarter are padding: whatever their pixels are labelled, the fit is that of the others."""
    torch.manual_seed(0)
    likelihood = Masks((4, 4), (8, 8), classes=classes)
    real = torch.arange(16).expand(40, 16) < 12
    outputs = 3 * torch.randn(2, 40, 16, classes)
    pixels = likelihood.of_tokens(outputs[:1] / 3, real).base_dist.sample()[0]
    fn = likelihood.of_tokens(outputs, real)
    answer = replace(likelihood.predict(likelihood.summarise(fn), 2), samples=likelihood.draw_mean(fn))
    unlabelled = pixels.clone()
    unlabelled[:, 6:] = -100
    for scaling in (TemperatureScaling, VectorScaling):
        found = scaling.fit(answer, pixels)
        assert found == scaling.fit(answer, unlabelled)
        scaled = found(answer)
        for value in (scaled.mean, scaled.total, scaled.aleatoric, scaled.epistemic, scaled.samples.movedim(0, -1)):
            assert not value[:, 6:].any()
            assert bool((value[:, :6] > 0).any())


def test_several_labels_have_one_temperature() -> None:
    truth = torch.randn(60, 4)
    y = torch.bernoulli(truth.sigmoid())
    answer = averaged(MultiLabel(4), (3 * truth)[None])
    unknown = y.masked_fill(torch.rand(60, 4) < 0.2, math.nan)
    known = ~unknown.isnan()
    assert TemperatureScaling.fit(answer, unknown) == TemperatureScaling.fit(answer.mean[known], y[known])
    assert TemperatureScaling(2.0)(answer).mean.shape == (60, 4)
    with refuses(DataError, (60, 4), (60,), "summed"):
        TemperatureScaling(2.0)(answer.summed())


@pytest.mark.parametrize("likelihood", [Gaussian(), HeteroscedasticGaussian()])
def test_the_deviation_of_numbers_is_scaled(likelihood: Likelihood) -> None:
    answer = _answer(likelihood, torch.randn(8, 200, likelihood.num_outputs))
    y = answer.mean + 3 * answer.variance.sqrt() * torch.randn(200)
    found = DeviationScaling.fit(answer, y)
    wide = torch.distributions.Normal(answer.mean.double(), answer.variance.double().sqrt())

    def loss(s: float) -> float:
        return -float(torch.distributions.Normal(wide.loc, s * wide.scale).log_prob(y.double()).mean())

    assert found.scale == pytest.approx(_golden(loss, 0.1, 20), abs=1e-5)
    scaled = found(answer)
    torch.testing.assert_close(scaled.variance, found.scale**2 * answer.variance)
    entropy = torch.distributions.Normal(scaled.mean, scaled.variance.sqrt()).entropy()
    torch.testing.assert_close(scaled.total, entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scaled.total, scaled.aleatoric + scaled.epistemic)
    torch.testing.assert_close(scaled.epistemic, answer.epistemic)
    torch.testing.assert_close(scaled.samples.var(0), found.scale**2 * answer.samples.var(0))
    torch.testing.assert_close(scaled.samples.mean(0), answer.mean, atol=1e-5, rtol=1e-5)


def test_a_fit_can_be_repeated_to_the_bit() -> None:
    answer, y = _classes()
    for scaling in (TemperatureScaling, VectorScaling):
        assert scaling.fit(answer, y).config() == scaling.fit(answer, y).config()


def test_what_a_fit_refuses() -> None:
    answer, y = _classes()
    with refuses(DataError, 10, 9):
        TemperatureScaling.fit(answer.mean[:9], y[:9])
    with refuses(DataError, 30, 29):
        VectorScaling.fit(answer.mean[:29], y[:29])
    with refuses(DataError, 2):
        TemperatureScaling.fit(answer, torch.full_like(y, 2))
    with refuses(DataError, [2]):
        VectorScaling.fit(answer, y % 2)
    with refuses(DataError, [0.0, 1.0, 2.0, 3.0]):
        TemperatureScaling.fit(answer, torch.arange(400) % 4)
    with refuses(DataError, (400, 3), "argmax"):
        TemperatureScaling.fit(answer, torch.nn.functional.one_hot(y, 3))
    spoiled = answer.mean.clone()
    spoiled[3, 1] = math.nan
    with refuses(DataError, "NaN"):
        TemperatureScaling.fit(spoiled, y)
    with refuses(DataError, "softmax"):
        TemperatureScaling.fit(answer.mean.log(), y)
    with refuses(DataError, 0.5):
        TemperatureScaling.fit(answer.mean / 2, y)
    with refuses(DataError, 400):  # every answer is right
        TemperatureScaling.fit(answer.mean, answer.mean.argmax(-1))
    with refuses(DataError, 400):
        VectorScaling.fit(answer.mean, answer.mean.argmax(-1))
    with refuses(DataError, 400):  # the least likely class is always right
        TemperatureScaling.fit(answer.mean, answer.mean.argmin(-1))
    with refuses(DataError, 400):  # the same answer everywhere
        VectorScaling.fit(answer.mean[:1].expand(400, 3), y)
    with refuses(DataError, 3, 2):
        VectorScaling([1.0, 1.0], [0.0, 0.0])(answer)
    with refuses(DataError, "dict"):
        require_tensor({"a": y}, "TemperatureScaling")
    with refuses(ConfigError, "temperature", -1.0):
        TemperatureScaling(-1.0)
    with refuses(ConfigError, "weight", "bias"):
        VectorScaling([1.0], [math.nan])


def test_numbers_and_classes_are_told_apart() -> None:
    numbers, (answer, y) = averaged(Gaussian(), torch.randn(2, 40, 1)), _classes()
    with refuses(ConfigError, "DeviationScaling"):
        TemperatureScaling.fit(numbers, y[:40])
    with refuses(ConfigError, "TemperatureScaling"):
        DeviationScaling.fit(answer, y)
    with refuses(ConfigError, "DeviationScaling"):
        TemperatureScaling(2.0)(numbers)
    both = Tasks({"topic": Categorical(3), "length": Gaussian()})
    joint = averaged(both, torch.randn(2, 40, both.num_outputs))
    with refuses(ConfigError, "topic", "length"):
        TemperatureScaling.fit(joint, y[:40])
    assert TemperatureScaling(2.0)(joint["topic"]).mean.shape == (40, 3)
    with refuses(DataError, (40,), (39,)):
        DeviationScaling.fit(numbers, torch.zeros(39))
    with refuses(DataError, [0]):
        DeviationScaling.fit(numbers, torch.zeros(40).index_fill(0, torch.tensor([0]), math.inf))
    with refuses(DataError, [2]):
        DeviationScaling.fit(replace(numbers, variance=numbers.variance.index_fill(0, torch.tensor([2]), 0.0)), y[:40])
    with refuses(DataError, 40):
        DeviationScaling.fit(numbers, numbers.mean)
