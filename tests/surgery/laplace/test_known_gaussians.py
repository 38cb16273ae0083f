"""Where outputs are linear in the weights, a Laplace approximation is known: exactly, or by finite differences."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayes_adapters import Batch, Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.likelihoods import Likelihood, MultiLabel, Ordinal, Poisson, StudentT
from bayes_adapters.surgery import _evidence
from bayes_adapters.surgery._curvature import bend
from bayes_adapters.surgery.laplace import laplace
from tests.helpers import Linear, core_model
from tests.refusals import refuses

N = 12
SCALE = 0.7
"""Of the prior."""


def linear(likelihood: Likelihood, targets: Tensor) -> tuple[Any, Batch, Tensor, Tensor]:
    """Model, batch, and the outputs ``f = f₀ + X w`` as f₀ (N, K) and X (N, K, 4) for a 2 × 2 core."""
    torch.manual_seed(0)
    batch = Batch({"x": torch.randn(N, 1, 4)}, targets=targets)
    options: dict[str, Any] = {"targets": ["query"], "rank": 2, "prior": dist.Normal(0.1, SCALE), "num_data": N}
    model = core_model("global", backbone=Linear(), likelihood=likelihood, **options)

    def outputs(core: Tensor) -> Tensor:
        with torch.no_grad():
            return pyro.poutine.condition(model, {"core.global": core.reshape(1, 2, 2)})(batch).double()

    zero = outputs(torch.zeros(4))
    return model, batch, zero, torch.stack([outputs(row) - zero for row in torch.eye(4)], -1)


def at(model: Any, core: Tensor) -> Delta:
    """The guide Delta at this core."""
    guide = Delta(model)
    with torch.no_grad():
        guide.loc["core-global"].copy_(core.reshape(1, 2, 2))
    return guide


def regression() -> tuple[Any, Batch, Tensor, Tensor, Tensor]:
    """Model, batch, exact posterior mean and precision at λ = 1, and log p(y)."""
    model, batch, zero, design = linear(Gaussian(-0.5), torch.randn(N))
    noise, flat = torch.tensor(-1.0).exp().double(), design[:, 0]
    precision = torch.eye(4).double() / SCALE**2 + flat.T @ flat / noise
    pull = flat.T @ (batch.targets - zero[:, 0]).double() / noise + 0.1 / SCALE**2
    covariance = noise * torch.eye(N) + SCALE**2 * flat @ flat.T
    marginal = torch.distributions.MultivariateNormal(zero[:, 0] + flat.sum(1) * 0.1, covariance)
    return model, batch, torch.linalg.solve(precision, pull), precision, marginal.log_prob(batch.targets.double())


@pytest.mark.parametrize("structure", ["full", "low_rank", "block"])
def test_a_linear_regression_is_exact(structure: str) -> None:
    model, batch, mean, precision, marginal = regression()
    same, guide, log = laplace(model, at(model, mean), [batch[:8], batch[8:]], structure=structure, prior_precision=1)
    q = guide.joint()
    assert same is model
    torch.testing.assert_close(q.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(q.covariance_matrix.double(), torch.linalg.inv(precision), rtol=1e-4, atol=1e-6)
    assert log.log_evidence == pytest.approx(float(marginal), abs=1e-3)
    assert log.shift < 1e-3
    assert (log.size, log.num_examples, log.num_data, log.kept) == (4, N, N, pytest.approx(1.0))


def test_the_diagonal_is_that_of_the_full_precision() -> None:
    model, batch, mean, precision, _ = regression()
    _, guide, _ = laplace(model, at(model, mean), batch, structure="diagonal", prior_precision=1.0)
    torch.testing.assert_close(guide.joint().variance.double(), 1 / precision.diagonal(), rtol=1e-4, atol=1e-7)


def test_the_predictive_of_a_regression_is_exact() -> None:
    """Its mean is f(m), its variance x Σ xᵀ + σ²; the linearised outputs are the outputs, draw by draw."""
    model, batch, mean, precision, _ = regression()
    _, guide, _ = laplace(model, at(model, mean), batch, structure="full", prior_precision=1.0)
    drawn, tangent = (predict(model, guide, batch, num_samples=1000, linearised=lin) for lin in (False, True))
    for field in ("mean", "variance", "epistemic", "log_density"):
        torch.testing.assert_close(getattr(tangent, field), getattr(drawn, field), rtol=1e-4, atol=1e-5)
    design = linear(Gaussian(-0.5), batch.targets)[3][:, 0]
    variance = (design @ torch.linalg.inv(precision) * design).sum(1) + torch.tensor(-1.0).exp()
    torch.testing.assert_close(tangent.variance.double(), variance, rtol=0.1, atol=0)


TARGETS = torch.arange(N) % 2
CASES: dict[str, tuple[Likelihood, Tensor]] = {
    "categorical": (Categorical(3), torch.arange(N) % 3),
    "bernoulli": (Bernoulli(), TARGETS.float()),
    "labels": (MultiLabel(2), torch.stack([TARGETS, 1 - TARGETS], 1).float()),
    "poisson": (Poisson(), TARGETS.float() * 3),
    "ordinal": (Ordinal(3), torch.arange(N) % 3),
}


@pytest.mark.filterwarnings("ignore:The adapter is not at an optimum")
@pytest.mark.parametrize("case", CASES)
def test_the_hessian_is_that_of_finite_differences(case: str) -> None:
    """Outputs are linear in w, so the generalised Gauss-Newton matrix is the Hessian of −log p(y | w)."""
    likelihood, targets = CASES[case]
    model, batch, zero, design = linear(likelihood, targets)
    core = torch.tensor([0.3, -0.2, 0.1, 0.4])

    def loss(w: Tensor) -> Tensor:
        outputs = zero + design @ w
        fn = model.likelihood_of(outputs, batch)
        return -fn.log_prob(targets).sum()

    exact = torch.autograd.functional.hessian(loss, core.double())
    step = 0.02
    moves = [step * row for row in torch.eye(4).double()]
    slopes = [torch.autograd.functional.jacobian(loss, core.double() + s * m) for m in moves for s in (1, -1)]
    differences = torch.stack([(a - b) / (2 * step) for a, b in zip(slopes[::2], slopes[1::2], strict=True)])
    torch.testing.assert_close(exact, differences, rtol=0.02, atol=0.02 * float(exact.abs().max()))
    _, guide, _ = laplace(model, at(model, core), batch, structure="full", prior_precision=1.0)
    precision = torch.linalg.inv(guide.joint().covariance_matrix.double())
    found = precision - torch.eye(4) / SCALE**2
    torch.testing.assert_close(found, differences, rtol=0.02, atol=0.02 * float(exact.abs().max()))


@pytest.mark.parametrize("likelihood", [HeteroscedasticGaussian(), StudentT()])
def test_what_bends_the_other_way_counts_as_flat(likelihood: Likelihood) -> None:
    model, batch, _, _ = linear(likelihood, 5 * torch.randn(N))
    outputs = torch.randn(1, likelihood.num_outputs)
    negative = 0
    for place in range(N):
        one = batch[place : place + 1]
        _, _, columns = bend(model, outputs, one)
        found = sum((torch.outer(c, c) for c in columns), torch.zeros(len(outputs[0]), len(outputs[0])).double())

        def loss(f: Tensor, one: Batch = one) -> Tensor:
            return -model.likelihood_of(f[None], one).log_prob(one.targets).sum()

        values, vectors = torch.linalg.eigh(torch.autograd.functional.hessian(loss, outputs[0]).double())
        negative += int((values < -1e-3).sum())
        torch.testing.assert_close(found, (vectors * values.clamp_min(0)) @ vectors.T, rtol=1e-4, atol=1e-4)
    assert negative > 0, "a case without any would show nothing"


def test_the_evidence_has_the_slope_that_its_search_takes() -> None:
    curvatures, norm = torch.tensor([40.0, 3.0, 0.2, 0.0]).double(), 2.5
    for precision in (0.03, 1.0, 20.0):
        ends = [_evidence.log_evidence(precision * factor, 0.0, norm, curvatures) for factor in (1 + 1e-4, 1 - 1e-4)]
        assert _evidence.slope(precision, norm, curvatures) == pytest.approx((ends[0] - ends[1]) / 2e-4, rel=1e-5)
    best = _evidence.maximum(norm, curvatures)
    found = _evidence.log_evidence(best, 0.0, norm, curvatures)
    assert _evidence.determined(best, curvatures) == pytest.approx(best * norm, rel=1e-6)
    others = [_evidence.log_evidence(10 ** (power / 10), 0.0, norm, curvatures) for power in range(-60, 60)]
    assert found >= max(others)


def test_the_evidence_chooses_the_precision_of_the_prior() -> None:
    """log p(y | λ) of the regression itself, on a grid."""
    model, batch, mean, _, _ = regression()
    flat, noise = linear(Gaussian(-0.5), batch.targets)[3][:, 0], torch.tensor(-1.0).exp().double()
    _, guide, log = laplace(model, at(model, mean), batch, structure="full")
    norm = float((mean - 0.1).square().sum() / SCALE**2)
    bent = torch.linalg.eigvalsh(SCALE**2 * flat.T @ flat / noise)
    grid = [10 ** (power / 20) for power in range(-60, 60)]
    best = max(grid, key=lambda one: _evidence.log_evidence(one, 0.0, norm, bent))
    assert log.prior_precision == pytest.approx(best, rel=0.13)
    assert guide.gaussian.prior_precision == pytest.approx(log.prior_precision, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The best prior precision")
def test_validation_chooses_the_precision_of_the_smallest_held_out_loss() -> None:
    model, batch, mean, _, _ = regression()
    held = Batch({"x": torch.randn(3, 1, 4)}, targets=torch.randn(3))
    parts = [held[:2], held[2:]]
    with refuses(ConfigError, "num_samples", 0):
        laplace(model, at(model, mean), batch, prior_precision="validation", validation=parts, num_samples=0)
    for linearised in (True, False, "outputs"):
        options: dict[str, Any] = {"prior_precision": "validation", "validation": parts, "num_samples": 16}
        _, guide, log = laplace(model, at(model, mean), batch, linearised=linearised, **options)
        assert len(log.searched) == 17
        best = min(log.searched, key=lambda pair: pair[1])
        assert log.prior_precision == best[0]
        again = -predict(model, guide, held, num_samples=16, linearised=linearised).log_density.double().mean()
        assert float(again) == pytest.approx(best[1], rel=1e-5)


@pytest.mark.filterwarnings("ignore:The adapter is not at an optimum")
def test_a_part_of_the_data_stands_for_all_of_them() -> None:
    """Four examples of N: curvature and log-likelihood count N / 4 times."""
    model, batch, mean, _, _ = regression()
    four = batch[torch.arange(4).repeat(3)]
    whole, part = (laplace(model, at(model, mean), d, structure="full")[1:] for d in (four, batch[:4]))
    assert part[1].num_examples == 4
    assert part[1].num_data == N
    assert part[1].log_evidence == pytest.approx(whole[1].log_evidence, rel=1e-5)
    torch.testing.assert_close(part[0].joint().covariance_matrix, whole[0].joint().covariance_matrix)


def test_another_guides_means_are_a_point_too() -> None:
    model, batch, mean, precision, _ = regression()
    point = MeanField(model)
    with torch.no_grad():
        point.loc["core-global"].copy_(mean.reshape(1, 2, 2))
    _, guide, _ = laplace(model, point, batch, structure="full", prior_precision=1.0)
    torch.testing.assert_close(guide.joint().covariance_matrix.double(), torch.linalg.inv(precision), rtol=1e-4, atol=0)
