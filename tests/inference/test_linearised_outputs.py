"""Predictives of linearised outputs: by draws of the outputs, which are Gaussian, or by a formula without draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Categorical, Gaussian, Tagging, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, FullGaussian, LowRank, MatrixNormal, MeanField, Mixture
from bayes_adapters.heads import BayesianLinear
from bayes_adapters.heads.predictive import probit, probit_of_pairs
from bayes_adapters.inference.draws import weight_draws, weight_gaussian
from bayes_adapters.inference.linearised import Tangent
from bayes_adapters.likelihoods import MultiGaussian, MultiLabel
from bayes_adapters.models import LoRA
from bayes_adapters.surgery.laplace import laplace
from tests.helpers import Linear, core_model, fill_B, pad, token_batch
from tests.refusals import refuses

pytestmark = pytest.mark.filterwarnings("ignore:The adapter is not at an optimum")


def over_all(model: Any, **options: Any) -> FullGaussian:
    return FullGaussian(model, over="all", **options)


def spread(guide: Any) -> Any:
    """Move a guide's parameters, so that a covariance has more than its diagonal."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in guide.parameters():
            value.add_(0.4 * torch.randn_like(value))
    return guide


def linear(likelihood: Any, make: Any = over_all) -> tuple[Any, Any, Batch]:
    """Outputs that are linear in a 2 × 2 core, and wide: the network is its tangent."""
    torch.manual_seed(0)
    batch = Batch({"x": torch.randn(6, 1, 4)})
    model = core_model("global", backbone=Linear(), likelihood=likelihood, targets=["query"], rank=2, num_data=6)
    return model.eval(), spread(make(fill_B(model, 1.2), init_scale=1.0)), batch


def tokens(likelihood: Any = None, make: Any = MeanField, **options: Any) -> tuple[Any, Any, Batch]:
    """Cores of two layers, and padded tokens of several lengths."""
    model = core_model("global", num_data=5, rank=2, likelihood=likelihood or Categorical(3), **options)
    return model.eval(), spread(make(model, init_scale=0.7)), Batch(token_batch(5).inputs)


def covariance_of(model: Any, guide: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of each example's outputs, from the draws of the weights themselves."""
    with torch.no_grad():
        mean, _ = weight_gaussian(model, guide)
        tangent = Tangent(model, mean)
        outputs, jacobian = tangent.at(batch)
        steps = tangent.flat(weight_draws(model, guide, torch.arange(10_000), seed=3)) - tangent.flat(mean)
    steps, jacobian = steps.double(), jacobian.double()
    return outputs.double(), jacobian @ (steps.T @ steps / len(steps)) @ jacobian.mT


@pytest.mark.parametrize("make", [MeanField, LowRank, over_all, FullGaussian, MatrixNormal])
def test_the_covariance_of_weights_is_that_of_their_draws(make: Any) -> None:
    model, guide, _ = tokens(make=make, head=BayesianLinear())
    mean, projected = weight_gaussian(model, guide)
    root = projected(torch.eye(sum(value.numel() for value in mean.values()))).detach().double()
    draws = weight_draws(model, guide, torch.arange(8000), seed=1)
    flat = torch.cat([draws[name].flatten(1) for name in mean], 1).double()
    unit = root.norm(dim=1)
    exact, found = root @ root.T / unit / unit[:, None], torch.cov(flat.T) / unit / unit[:, None]
    torch.testing.assert_close(found, exact, rtol=0, atol=0.07)
    assert (exact - torch.eye(len(exact))).abs().max() > 0.2 or make is MeanField, "a diagonal would pass"


@pytest.mark.parametrize("likelihood", [Categorical(3), Bernoulli(), MultiLabel(2)])
def test_draws_of_outputs_and_of_weights_have_one_predictive(likelihood: Any) -> None:
    """Ten thousand draws of the network, which is linear in its weights, against those of its outputs."""
    model, guide, batch = linear(likelihood)
    many = predict(model, guide, batch, num_samples=10_000)
    assert float(many.epistemic.mean()) > 0.02, "a narrow posterior would show nothing"
    for count, tolerance in ((10_000, 0.015), (None, 0.05)):
        few = predict(model, guide, batch, linearised="outputs", num_samples=count)
        assert few.num_samples == (count or 1000)
        for part in ("mean", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(few, part), getattr(many, part), rtol=0, atol=tolerance)


@pytest.mark.parametrize("make", [MeanField, LowRank, FullGaussian])
def test_a_regression_needs_no_draws(make: Any) -> None:
    """N(f(x; m), J Σ Jᵀ + σ²), however many draws are asked for."""
    model, guide, batch = linear(Gaussian(-0.5), make)
    batch = Batch(batch.inputs, torch.randn(6))
    outputs, covariance = covariance_of(model, guide, batch)
    variance = covariance[:, 0, 0] + torch.tensor(-1.0).double().exp()
    for how in ("outputs", "probit"):
        found = predict(model, guide, batch, linearised=how, num_samples=3)
        torch.testing.assert_close(found.mean.double(), outputs[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.variance.double(), variance, rtol=0.06, atol=0)
        torch.testing.assert_close(found.epistemic_variance.double(), covariance[:, 0, 0], rtol=0.06, atol=0)
        exact = torch.distributions.Normal(found.mean, found.variance.sqrt()).log_prob(batch.targets)
        torch.testing.assert_close(found.log_density, exact)


def test_several_numbers_are_drawn_together_or_predicted_one_by_one() -> None:
    model, guide, batch = linear(MultiGaussian(2))
    drawn = predict(model, guide, batch, linearised="outputs", num_samples=8000, return_samples=True)
    exact = predict(model, guide, batch, linearised="probit")
    torch.testing.assert_close(drawn.epistemic_variance, exact.epistemic_variance, rtol=0.07, atol=0)
    _, covariance = covariance_of(model, guide, batch)
    found = torch.stack([torch.cov(rows.T) for rows in drawn.samples.double().transpose(0, 1)])
    torch.testing.assert_close(found, covariance, rtol=0, atol=0.06 * float(covariance.max()))


@pytest.mark.parametrize("likelihood", [Categorical(3), Tagging(3)])
def test_neither_batches_nor_padding_nor_chunks_move_a_draw(likelihood: Any) -> None:
    model, guide, batch = tokens(likelihood)
    options: dict[str, Any] = {"linearised": "outputs", "num_samples": 6, "return_samples": True}
    whole = predict(model, guide, batch, **options).samples
    cut = predict(model, guide, [pad(batch[:3], 2), batch[3:]], chunk_size=2, **options).samples
    torch.testing.assert_close(cut[:, :, : whole.shape[2]], whole, rtol=1e-3, atol=1e-5)
    other = predict(model, guide, batch, seed=1, **options).samples
    assert not torch.allclose(other, whole, atol=0.01)


def test_a_temperature_scales_the_covariance() -> None:
    model, guide, batch = linear(Bernoulli())
    same: dict[str, Any] = {"linearised": "outputs", "num_samples": 5, "return_samples": True}
    plain, cold = (predict(model, guide, batch, temperature=t, **same).samples.logit() for t in (1.0, 0.25))
    mean = predict(model, guide, batch, linearised="outputs", mean_only=True).mean.logit()
    torch.testing.assert_close(cold - mean, 0.5 * (plain - mean), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("likelihood", "temperature", "error"),
    [(Categorical(2), 1.0, 0.02), (Categorical(3), 0.1, 0.07), (Bernoulli(), 1.0, 0.02)],
)
def test_probit_is_near_the_average_over_draws(likelihood: Any, temperature: float, error: float) -> None:
    model, guide, batch = linear(likelihood)
    narrower: dict[str, Any] = {"temperature": temperature}
    drawn = predict(model, guide, batch, linearised="outputs", num_samples=10_000, **narrower)
    found = predict(model, guide, batch, linearised="probit", **narrower)
    assert (found.num_samples, float(found.epistemic.max())) == (1, 0.0)
    point = predict(model, guide, batch, linearised="probit", mean_only=True).mean
    errors = [float((answer - drawn.mean).abs().mean()) for answer in (found.mean, point)]
    assert errors[0] < min(error, 0.5 * errors[1])


def test_pairs_of_logits_are_taken_with_their_correlation() -> None:
    torch.manual_seed(0)
    mean, factor = torch.randn(50, 3), 0.6 * torch.randn(50, 3, 3)
    covariance = factor @ factor.mT + 9.0  # 9: a logit that all classes have in common
    draws = torch.distributions.MultivariateNormal(mean, covariance).sample((5000,)).softmax(-1).mean(0)
    alone = probit(mean, covariance.diagonal(dim1=-2, dim2=-1))
    errors = [float((f.softmax(-1) - draws).abs().mean()) for f in (probit_of_pairs(mean, covariance), alone)]
    assert errors[0] < 0.02
    assert errors[1] > 3 * errors[0]


def test_a_trained_point_and_every_structure_of_laplace() -> None:
    model, _, batch = linear(Categorical(3))
    labelled = Batch(batch.inputs, torch.arange(6) % 3)
    for structure in ("full", "block", "kronecker", "diagonal", "low_rank"):
        _, guide, _ = laplace(model, Delta(model), labelled, structure=structure, prior_precision=1.0)
        many = predict(model, guide, batch, num_samples=4000).mean
        torch.testing.assert_close(predict(model, guide, batch, linearised="outputs").mean, many, rtol=0, atol=0.04)


def test_what_is_refused() -> None:
    model, guide, batch = linear(Categorical(3))
    with refuses(ConfigError, "linearised", "weights", "outputs", "probit"):
        predict(model, guide, batch, linearised="output")
    with refuses(ConfigError, "Gaussian", "linearised=True"):
        predict(model, Mixture(model), batch, linearised="outputs")
    point = LoRA(Linear(), Categorical(3), targets=["query"], rank=2)
    for how in (True, "outputs", "probit"):
        with refuses(ConfigError, "LoRA", "linearised", "laplace"):
            predict(point, Delta(point), batch, linearised=how)
    model, guide, batch = linear(MultiLabel(2))
    with refuses(ConfigError, "probit", "MultiLabel", "outputs"):
        predict(model, guide, batch, linearised="probit")
