"""Weights and noise inferred together: conjugate linear regression, densities by draws and by scipy, and files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy.stats import invwishart, multivariate_t
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_adapters import ELBO, Batch, Bernoulli, Gaussian, load, predict, save
from bayes_adapters.distributions import MatrixNormalInverseWishart
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import CrossAttention, Delta
from bayes_adapters.heads import ConjugateLastLayer
from bayes_adapters.likelihoods import MultiGaussian
from bayes_adapters.likelihoods._conjugate import ConjugateNormal
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.training import fit
from tests.helpers import CONTEXT, Linear, bert, fill_B, token_batch
from tests.refusals import refuses

N = 20


def family(outputs: int, width: int, df: float, seed: int) -> MatrixNormalInverseWishart:
    torch.manual_seed(seed)
    lower = [(0.3 * torch.randn(n, n)).tril(-1) + torch.diag(0.5 + torch.rand(n)) for n in (width, outputs)]
    loc = torch.randn(outputs, width).double()
    return MatrixNormalInverseWishart(loc, *(part.double() for part in lower), torch.tensor(df).double())


# the family


def test_of_one_output_it_is_a_normal_and_an_inverse_gamma() -> None:
    q = family(1, 3, 7.0, 0)
    value = q.rsample((5,))
    weight, variance = value[:, 0, :3], value[:, 0, 3].square()
    psi = float(q.spread.square())
    given = [torch.distributions.MultivariateNormal(q.loc[0], s * q.columns @ q.columns.mT) for s in variance]
    of_weight = torch.stack([fn.log_prob(w) for fn, w in zip(given, weight, strict=True)])
    of_noise = dist.InverseGamma(torch.tensor(3.5).double(), torch.tensor(psi / 2).double()).log_prob(variance)
    torch.testing.assert_close(q.log_prob(value), of_weight + of_noise)


@pytest.mark.parametrize("outputs", [1, 2])
def test_the_kl_is_that_of_draws_and_so_are_the_moments(outputs: int) -> None:
    q, p = family(outputs, 3, 9.0, 0), family(outputs, 3, 6.0, 1)
    draws = q.rsample((20_000,))
    scores = q.log_prob(draws) - p.log_prob(draws)
    error = float(scores.std()) / math.sqrt(20_000)
    assert abs(float(scores.mean() - kl_divergence(q, p))) < 4 * error
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros(()).double(), rtol=0, atol=1e-9)
    lower = draws[..., 3:]
    torch.testing.assert_close((lower @ lower.mT).mean(0), q.noise, rtol=0.05, atol=0.02)
    torch.testing.assert_close(draws[..., :3].mean(0), q.loc, rtol=0, atol=0.03)
    rank_one = torch.einsum("si,sj->ij", *(2 * [draws[:, 0, :3] - q.loc[0]])) / 20_000
    torch.testing.assert_close(rank_one, q.noise[0, 0] * q.columns @ q.columns.mT, rtol=0.05, atol=0.03)


# what scores targets


def scored(df: float | None = 7.0) -> tuple[ConjugateNormal, Tensor, Tensor]:
    torch.manual_seed(0)
    spread = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 1.1]]).double()
    loc, h = torch.randn(4, 3).double(), torch.rand(4).double()
    number = None if df is None else torch.tensor(df).double()
    return ConjugateNormal(loc, h, spread, number, single=False), torch.randn(4, 3).double(), spread @ spread.mT


def test_the_predictive_is_students_t_also_of_the_numbers_that_are_known() -> None:
    fn, y, psi = scored()
    y[1, 0] = y[2, :2] = y[3] = math.nan
    found = fn.predictive().log_prob(y)
    for row in range(3):
        known = ~y[row].isnan()
        shape = psi[known][:, known] * (1 + fn.leverage[row]) / 5.0
        exact = multivariate_t(fn.centre[row][known].numpy(), shape.numpy(), df=5.0).logpdf(y[row][known].numpy())
        assert float(found[row]) == pytest.approx(float(exact), rel=1e-9)
    assert float(found[3]) == float(fn.log_prob(y)[3]) == 0.0


def test_the_score_is_the_expectation_over_weights_and_noise_also_of_the_numbers_that_are_known() -> None:
    fn, y, psi = scored()
    y[1, 0] = y[2, :2] = math.nan
    torch.manual_seed(1)
    noise = torch.from_numpy(invwishart(df=7.0, scale=psi.numpy()).rvs(40_000, random_state=1))
    lower = torch.linalg.cholesky(noise)
    for row in range(3):
        f = fn.centre[row] + fn.leverage[row].sqrt() * (lower @ torch.randn(40_000, 3, 1).double())[..., 0]
        known = ~y[row].isnan()
        normal = torch.distributions.MultivariateNormal(f[:, known], noise[:, known][:, :, known])
        draws = normal.log_prob(y[row][known])
        error = float(draws.std()) / 200
        assert abs(float(draws.mean() - fn.log_prob(y)[row])) < 4 * error


def test_draws_of_targets_have_the_predictives_moments() -> None:
    fn, *_ = scored()
    drawn = fn.sample((40_000,))
    variance = fn.scale.square() + fn.spread
    torch.testing.assert_close(drawn.mean(0), fn.loc, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.1, atol=0)


# conjugate regression


def regression(outputs: int, **options: Any) -> tuple[Any, Any, Batch, Tensor]:
    """Fixed features of one linear layer, in double precision."""
    torch.manual_seed(4)
    likelihood = Gaussian() if outputs == 1 else MultiGaussian(outputs)
    head = ConjugateLastLayer(prior_scale=1.5, noise_scale=0.7, noise_weight=3.0, **options)
    model = LoRA(Linear(), likelihood, targets=["query"], rank=1, head=head, num_data=N).double()
    targets = torch.randn(N, outputs).double()
    batch = Batch({"x": torch.randn(N, 2, 4).double()}, targets[:, 0] if outputs == 1 else targets)
    model.requires_grad_(False)
    hidden = model.backbone(**batch.inputs).last_hidden_state.mean(1)
    features = torch.cat([hidden, hidden.new_full((N, 1), math.sqrt(3.0))], 1).detach()
    return model, Delta(model).double(), batch, features


def conjugate(features: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, float, Tensor]:
    """M, V, Ψ and ν of the posterior, and log p(y)."""
    outputs, width = y.shape[1], features.shape[1]
    prior_v, psi, df = torch.eye(width).double() * 1.5**2 / 3, 3 * 0.7**2 * torch.eye(outputs).double(), outputs + 4.0
    v = torch.linalg.inv(torch.linalg.inv(prior_v) + features.T @ features)
    m = y.T @ features @ v
    late = psi + y.T @ y - m @ torch.linalg.inv(v) @ m.T
    gammas = [torch.special.multigammaln(torch.tensor(d / 2).double(), outputs) for d in (df, df + N)]
    evidence = -0.5 * N * outputs * math.log(math.pi) + gammas[1] - gammas[0]
    evidence = evidence + 0.5 * outputs * (torch.logdet(v) - torch.logdet(prior_v))
    evidence = evidence + 0.5 * df * torch.logdet(psi) - 0.5 * (df + N) * torch.logdet(late)
    return m, v, late, df + N, evidence


def put(guide: Any, m: Tensor, v: Tensor, psi: Tensor, df: float) -> None:
    own = guide.head_posterior
    with torch.no_grad():
        own.loc[0], own.log_count[0] = m, math.log(df - own.least)
        for (scale, lower), matrix in (
            ((own.log_scale, own.lower), v),
            ((own.log_noise, own.noise_lower), psi / (df - len(psi) - 1)),
        ):
            factor = torch.linalg.cholesky(matrix)
            scale[0] = factor.diagonal().log()
            lower[0] = factor / factor.diagonal()[:, None]


@pytest.mark.parametrize("outputs", [1, 2])
def test_at_the_conjugate_posterior_the_loss_is_the_evidence(outputs: int) -> None:
    model, guide, batch, features = regression(outputs)
    y: Any = batch.targets
    *exact, evidence = conjugate(features, y.reshape(N, outputs))
    put(guide, *exact)
    loss = ELBO(model, guide)(batch)
    torch.testing.assert_close(loss, -evidence / N)
    loss.backward()
    for name, value in guide.named_parameters():
        torch.testing.assert_close(value.grad, torch.zeros_like(value), rtol=0, atol=1e-7, msg=name)
    m, v, psi, df = exact
    h = (features @ v * features).sum(1)
    found = predict(model, guide, batch, num_samples=8)
    shape = psi * (1 + h[:, None, None]) / (df - outputs + 1)
    density = [
        multivariate_t(row.numpy(), s.numpy(), df=df - outputs + 1).logpdf(t.numpy())
        for row, s, t in zip(features @ m.T, shape, y.reshape(N, outputs), strict=True)
    ]
    torch.testing.assert_close(found.log_density.double(), torch.tensor(density), rtol=1e-5, atol=1e-5)
    variance = (psi.diagonal() * (1 + h[:, None]) / (df - outputs - 1)).reshape(found.variance.shape)
    torch.testing.assert_close(found.variance.double(), variance, rtol=1e-5, atol=1e-6)
    point = predict(model, guide, batch, mean_only=True)
    torch.testing.assert_close(
        point.variance[0].double(), (psi.diagonal() / (df - outputs - 1)).squeeze(), rtol=1e-5, atol=1e-6
    )


def test_training_finds_the_evidence() -> None:
    model, guide, batch, features = regression(2)
    y: Any = batch.targets
    optimizer = torch.optim.LBFGS(guide.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-8)
    elbo = ELBO(model, guide)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = elbo(batch)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(elbo(batch), -conjugate(features, y)[-1] / N, rtol=1e-4, atol=1e-4)


# in models


@pytest.mark.parametrize("covariance", ["diagonal", "dense"])
def test_it_trains_beside_stochastic_adapters_and_is_saved(covariance: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    targets = torch.randn(5, 2)
    targets[1, 0] = math.nan
    likelihood = MultiGaussian(2, target_mean=[1.0, -1.0], target_scale=[2.0, 0.5])
    head = ConjugateLastLayer(covariance, init_scale=1.0)
    model = fill_B(StochasticCore(bert(), likelihood, rank=3, num_data=5, head=head), 2.0)
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4)
    batch = token_batch(targets=targets)
    fit(model, guide, batch, epochs=2, progress=False)
    own = guide.head_posterior
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in own.parameters())  # type: ignore[union-attr]
    found = predict(model, guide, batch, num_samples=12)
    torch.testing.assert_close(
        predict(model, guide, batch, num_samples=12, chunk_size=5).log_density, found.log_density
    )
    assert bool((found.epistemic > 0).all())
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    torch.testing.assert_close(predict(again, guide_again, batch, num_samples=12).total, found.total)
    assert again.head.config() == model.head.config()


def test_what_cannot_be() -> None:
    with refuses(ConfigError, "ConjugateLastLayer", "Bernoulli", "MultiGaussian"):
        LoRA(bert(), Bernoulli(), head=ConjugateLastLayer(), num_data=5)
    with refuses(ConfigError, "covariance", "low_rank", "dense"):
        ConjugateLastLayer("low_rank")
    with refuses(ConfigError, "noise_weight", "0.0"):
        ConjugateLastLayer(noise_weight=0.0)
    with refuses(ConfigError, "num_data="):
        LoRA(bert(), Gaussian(), head=ConjugateLastLayer())
    model, *_ = regression(1)
    with pytest.raises(NotImplementedError):  # rather than a negative variance
        AutoNormal(pyro.poutine.block(model, hide=["obs"]))(
            Batch({"x": torch.randn(2, 2, 4).double()}, torch.randn(2).double())
        )
