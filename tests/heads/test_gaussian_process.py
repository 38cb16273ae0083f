"""The Gaussian process as a head, against gpytorch's exact and variational processes and torch's KL."""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from bayes_adapters import ELBO, Batch, Bernoulli, Categorical, Gaussian, predict
from bayes_adapters.guides import Delta
from bayes_adapters.heads._expectation import expected_log_density
from bayes_adapters.heads.gaussian_process import GaussianProcessHead
from bayes_adapters.likelihoods import HeteroscedasticGaussian, Likelihood, MultiGaussian, MultiLabel, Poisson
from bayes_adapters.models import LoRA
from tests.heads.parts import on_points, scattered

NOISE = 0.3


def curve(size: int = 12) -> tuple[Tensor, Tensor]:
    x = torch.linspace(-3.0, 3.0, size)[:, None]
    return x, torch.sin(2.0 * x[:, 0]) + NOISE * torch.randn(size)


class Exact(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, head: GaussianProcessHead) -> None:
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())
        self.double()
        likelihood.noise = NOISE**2
        self.mean_module.constant = head.mean.constant.item()
        self.covar_module.outputscale = head.kernel.outputscale.item()
        self.covar_module.base_kernel.lengthscale = head.kernel.base_kernel.lengthscale.item()

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def put_exact_posterior(head: GaussianProcessHead, q: Any, x: Tensor, y: Tensor) -> None:
    """Set q(u) to p(u | y) at inducing points that are the data: u has precision I + LᵀL/σ²."""
    with torch.no_grad():
        head.inducing_points.copy_(x)
        z = x.double()
        factor = torch.linalg.cholesky(head.kernel(z).to_dense()[0] + 1e-6 * torch.eye(len(z)))
        precision = torch.eye(len(z)) + factor.mT @ factor / NOISE**2
        covariance = torch.linalg.inv(precision)
        q.variational_mean[0] = covariance @ factor.mT @ (y - head.mean.constant).double() / NOISE**2
        q.chol_variational_covar[0] = torch.linalg.cholesky(covariance)


def exact_pair() -> tuple[LoRA, Delta, Batch, Exact]:
    x, y = curve()
    model = on_points(x, Gaussian(math.log(NOISE)), len(x), lengthscale=0.7)
    with torch.no_grad():
        model.head.mean.raw_constant.fill_(0.2)
        model.head.kernel.outputscale = 1.4
    guide = Delta(model)
    put_exact_posterior(model.head, guide.head_posterior.u, x, y)
    return model, guide, Batch({"x": x}, y), Exact(x.double(), y.double(), model.head)


def test_inducing_points_at_the_data_give_the_exact_posterior_and_the_evidence() -> None:
    """Oracle: gpytorch's ExactGP with the same hyper-parameters. Tolerance: jitter 1e-6 and float32 parameters."""
    model, guide, batch, exact = exact_pair()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(exact.likelihood, exact)
    expected = evidence(exact(*exact.train_inputs), exact.train_targets)
    loss = ELBO(model, guide)(batch)
    torch.testing.assert_close(-loss.double(), expected, rtol=0.0, atol=1e-4)
    new = torch.linspace(-5.0, 5.0, 21)[:, None]
    exact.eval()
    known = exact(new.double())
    mean, variance = model.head.moments(new, guide.head_posterior)
    torch.testing.assert_close(mean[:, 0], known.mean, rtol=0.0, atol=1e-3)
    torch.testing.assert_close(variance[:, 0], known.variance, rtol=0.0, atol=1e-3)


def test_the_exact_posterior_is_the_maximum_of_the_elbo() -> None:
    model, guide, batch, _ = exact_pair()
    elbo = ELBO(model, guide)
    q = list(guide.head_posterior.parameters())
    gradients = torch.autograd.grad(elbo(batch), q)
    assert all(gradient.tril().abs().max() < 1e-4 for gradient in gradients)
    best = elbo(batch).item()
    with torch.no_grad():
        q[0].add_(0.1 * torch.randn_like(q[0]))
    assert elbo(batch).item() > best + 1e-3


def test_draws_of_a_prediction_have_the_moments_of_the_process() -> None:
    """The predictive of 4,000 draws; far from the data f has its prior's mean and variance."""
    model, guide, _, exact = exact_pair()
    new = torch.tensor([[-2.0], [0.3], [50.0]])
    found = predict(model, guide, Batch({"x": new}), num_samples=4000)
    exact.eval()
    known = exact.likelihood(exact(new.double()))
    error = (known.variance / 4000).sqrt() * 4
    assert ((found.mean - known.mean).abs() < error).all()
    torch.testing.assert_close(found.variance.double(), known.variance, rtol=0.12, atol=0.0)
    assert known.mean[2].item() == pytest.approx(0.2, abs=1e-6)
    assert known.variance[2].item() == pytest.approx(1.4 + NOISE**2, rel=1e-4)
    assert found.epistemic[2] > 3 * found.epistemic[:2].max()
    once = predict(model, guide, Batch({"x": new}), mean_only=True)
    torch.testing.assert_close(once.mean.double(), known.mean, rtol=0.0, atol=1e-3)


class Logistic(gpytorch.likelihoods.likelihood._OneDimensionalLikelihood):
    """Bernoulli with a logistic link; gpytorch's own has a probit link."""

    def forward(self, f: Tensor, *args: Any, **kwargs: Any) -> Any:
        return gpytorch.distributions.base_distributions.Bernoulli(logits=f)


@pytest.mark.parametrize("kernel", ["rbf", "matern12", "matern32", "matern52"])
@pytest.mark.parametrize("task", ["regression", "two classes", "regressions"])
def test_the_elbo_is_gpytorchs(kernel: str, task: str) -> None:
    torch.manual_seed(3)
    x, n = torch.randn(9, 2), 30
    kinds: dict[str, tuple[Likelihood, Tensor, Any]] = {
        "regression": (Gaussian(math.log(NOISE)), torch.randn(9), gpytorch.likelihoods.GaussianLikelihood()),
        "two classes": (Bernoulli(), torch.randint(2, (9,)).float(), Logistic()),
        "regressions": (
            MultiGaussian(3, math.log(NOISE)),
            torch.randn(9, 3),
            gpytorch.likelihoods.MultitaskGaussianLikelihood(num_tasks=3, rank=0, has_global_noise=False),
        ),
    }
    likelihood, targets, theirs = kinds[task]
    theirs = theirs.double()
    if task == "regression":
        theirs.noise = NOISE**2
    if task == "regressions":
        theirs.task_noises = torch.full((3,), NOISE**2)
    model = on_points(x, likelihood, 4, kernel=kernel)
    model.num_data = n
    guide = scattered(Delta(model))
    terms = ELBO(model, guide).terms(Batch({"x": x}, targets))
    process = model.head.double().process(guide.head_posterior.double())
    mll = gpytorch.mlls.VariationalELBO(theirs, process, num_data=n)
    f, y = process(x.double()), targets.double()
    if model.likelihood.num_outputs == 1:
        f, y = gpytorch.distributions.MultivariateNormal(f.mean[:, 0], torch.diag(f.variance[:, 0])), targets.double()
    torch.testing.assert_close(-terms.loss.double(), mll(f, y), rtol=1e-5, atol=1e-5)
    kl = process.variational_strategy.kl_divergence() / n
    torch.testing.assert_close(terms.kl.double(), kl, rtol=1e-5, atol=1e-5)
    mean, variance = model.head.moments(x, guide.head_posterior)
    torch.testing.assert_close((mean, variance), (process(x.double()).mean, process(x.double()).variance))


def test_the_kl_is_torchs_and_counts_once_per_data_set() -> None:
    x = torch.randn(5, 2)
    model = on_points(x, Categorical(3), 4)
    guide = scattered(Delta(model))
    batch = Batch({"x": x}, torch.tensor([0, 1, 2, 0, 1]))
    normal = torch.distributions.MultivariateNormal
    factor = guide.head_posterior.u.chol_variational_covar.tril()
    q = normal(guide.head_posterior.u.variational_mean, factor @ factor.mT + 1e-12 * torch.eye(4))
    expected = torch.distributions.kl_divergence(q, normal(torch.zeros(3, 4), torch.eye(4))).sum()
    for size in (5, 20):
        model.num_data = size
        for weight in (1.0, 0.1):
            for particles in (1, 3):
                elbo = ELBO(model, guide, kl_weight=weight, num_particles=particles)
                torch.testing.assert_close(elbo.terms(batch).kl, weight * expected / size, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("likelihood", "targets"),
    [
        (Categorical(3), torch.tensor([0, 2])),
        (HeteroscedasticGaussian(), torch.tensor([0.3, -0.2])),
        (MultiLabel(3), torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])),
        (Poisson(), torch.tensor([2.0, 0.0])),
        (MultiGaussian(2), torch.tensor([[0.1, math.nan], [2.0, -1.0]])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_expected_log_densities_are_those_of_many_draws(likelihood: Likelihood, targets: Tensor) -> None:
    torch.manual_seed(0)
    mean, variance = torch.randn(2, likelihood.num_outputs), torch.rand(2, likelihood.num_outputs) * 0.5
    draws = mean + variance.sqrt() * torch.randn(200_000, *mean.shape)
    scores = likelihood.distribution(draws).log_prob(targets)
    found = expected_log_density(likelihood, mean, variance, targets, 50_000)
    assert ((found - scores.mean(0)).abs() < 5 * scores.std(0) * (1 / 200_000 + 1 / 50_000) ** 0.5).all()


def test_draws_in_the_model_agree_with_the_expectation() -> None:
    """Pyro's own estimator, which scores f at draws of u and of f given u, has the ELBO as its mean."""
    x = torch.randn(6, 2)
    model = on_points(x, Bernoulli(), 4)
    guide, batch = scattered(Delta(model)), Batch({"x": x}, torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0]))
    expected = ELBO(model, guide)(batch).item()
    estimate = Trace_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        losses = torch.tensor([estimate.loss(model, guide, batch) for _ in range(10)]) / 6
    assert abs(losses.mean().item() - expected) < 4 * losses.std().item() / 10**0.5
