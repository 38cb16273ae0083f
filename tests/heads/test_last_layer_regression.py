"""The variational last layer of numbers: exact scores, the conjugate posterior, and an exact predictive."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import (
    ELBO,
    Gaussian,
    predict,
)
from bayes_adapters.likelihoods import GaussianOutputs, MultiGaussian
from tests.heads.last_layer import (
    COVARIANCES,
    conjugate,
    last_layer,
    phi,
    posterior,
    put,
    regression,
)
from tests.helpers import token_batch


def test_expected_scores_of_numbers_are_exact() -> None:
    torch.manual_seed(0)
    mean, variance, targets = torch.randn(4, 2), torch.rand(4, 2), torch.randn(4, 2)
    draws = mean + variance.sqrt() * torch.randn(400_000, 4, 2)
    for likelihood, columns in ((Gaussian(-0.2, target_mean=1.0, target_scale=3.0), 1), (MultiGaussian(2), 2)):
        wanted = targets[:, 0] if columns == 1 else targets
        part = GaussianOutputs(mean[:, :columns], variance[:, :columns])
        fn = likelihood.expected(part.reshape(1, 4, columns))
        scores = likelihood.distribution(draws[..., :columns]).log_prob(wanted)
        torch.testing.assert_close(fn.log_prob(wanted)[0], scores.mean(0), rtol=0, atol=0.01)
        density = torch.logsumexp(scores, 0) - math.log(400_000)
        torch.testing.assert_close(likelihood.log_density(fn, wanted)[0], density, rtol=0, atol=0.01)
        found = likelihood.predict(likelihood.summarise(fn), 1)
        sampled = likelihood.distribution(draws[:20_000, ..., :columns])
        by_draws = likelihood.predict(likelihood.summarise(sampled), 20_000)
        for name in ("mean", "variance", "total", "aleatoric", "epistemic"):
            torch.testing.assert_close(getattr(found, name), getattr(by_draws, name), rtol=0.03, atol=0.03)


def test_at_the_conjugate_posterior_the_loss_is_the_evidence() -> None:
    model, guide, batch, features = regression()
    put(guide, *conjugate(features, batch.targets, 0.25))  # type: ignore[arg-type]
    loss = ELBO(model, guide)(batch)
    cov = 0.25 * torch.eye(20).double() + 1.5**2 / 3 * features @ features.T
    evidence = torch.distributions.MultivariateNormal(torch.zeros(20).double(), cov).log_prob(batch.targets)
    torch.testing.assert_close(loss, -evidence / 20)
    loss.backward()
    for name, value in guide.named_parameters():
        torch.testing.assert_close(value.grad, torch.zeros_like(value), rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_training_finds_the_conjugate_posterior(covariance: str) -> None:
    """Dense: all of it; of fewer numbers: its mean, and where independent the inverse precisions."""
    model, guide, batch, features = regression(covariance=covariance, covariance_rank=1)
    optimizer = torch.optim.LBFGS(guide.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-9)
    elbo = ELBO(model, guide)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = elbo(batch)
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    mean, cov = conjugate(features, batch.targets, 0.25)  # type: ignore[arg-type]
    found_mean, found_cov = (value[0] for value in posterior(guide))
    torch.testing.assert_close(found_mean, mean, rtol=1e-3, atol=1e-3)
    if covariance == "dense":
        torch.testing.assert_close(found_cov, cov, rtol=1e-3, atol=1e-3)
    if covariance == "diagonal":
        torch.testing.assert_close(found_cov.diagonal(), 1 / torch.linalg.inv(cov).diagonal(), rtol=1e-3, atol=1e-4)


def test_the_noise_is_where_the_inverse_gamma_says() -> None:
    """``σ² = (b + ½ Σ (r² + φᵀSφ)) / (a + 1 + N/2)`` makes the loss stationary, and by its prior is no other."""
    model, guide, batch, features = regression(noise_prior=(3.0, 2.0))
    mean, cov = conjugate(features, batch.targets, 0.25)  # type: ignore[arg-type]
    put(guide, mean, cov)
    spread = (features @ cov * features).sum(1) + (batch.targets - features @ mean).square()  # type: ignore[operator]
    sigma2 = (2.0 + 0.5 * spread.sum()) / (3.0 + 1.0 + 10.0)
    log_scale: nn.Parameter = model.likelihood.log_scale  # type: ignore[assignment]
    log_scale.requires_grad_(True)
    with torch.no_grad():
        log_scale.copy_(0.5 * sigma2.log())
    ELBO(model, guide)(batch).backward()
    torch.testing.assert_close(log_scale.grad, torch.zeros_like(log_scale), rtol=0, atol=1e-9)


def test_the_predictive_of_numbers_is_exact_and_needs_one_pass() -> None:
    model, guide, batch, features = regression()
    mean, cov = conjugate(features, batch.targets, 0.25)  # type: ignore[arg-type]
    put(guide, mean, cov)
    passes: list[int] = []
    model.backbone.register_forward_hook(lambda *args: passes.append(len(args[2].last_hidden_state)))
    found = predict(model, guide, batch, num_samples=32)
    variance = (features @ cov * features).sum(1) + 0.25
    torch.testing.assert_close(found.mean, (features @ mean).float())
    torch.testing.assert_close(found.variance, variance.float())
    torch.testing.assert_close(found.epistemic, 0.5 * (variance / 0.25).log().float())
    density = torch.distributions.Normal(features @ mean, variance.sqrt()).log_prob(batch.targets)
    torch.testing.assert_close(found.log_density, density, check_dtype=False)
    assert (passes, found.num_samples) == ([20], 32)
    point = predict(model, guide, batch, mean_only=True)
    torch.testing.assert_close(point.variance, torch.full((20,), 0.25))
    assert not point.epistemic.any()


def test_several_numbers_have_a_noise_each_and_some_are_not_known() -> None:
    """An unknown number is scored by nobody, and the known one's predictive is exact."""
    torch.manual_seed(0)
    targets = torch.randn(5, 2)
    targets[1, 0] = float("nan")
    model, guide = last_layer(MultiGaussian(2, target_mean=[1.0, -1.0], target_scale=[2.0, 0.5]), covariance="dense")
    batch = token_batch(targets=targets)
    loss = ELBO(model, guide)(batch)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool((model.likelihood.log_scale.grad != 0).all())  # type: ignore[union-attr]
    mean, cov = posterior(guide)
    features, unit = phi(model, batch), torch.tensor([2.0, 0.5])
    variance = unit**2 * (torch.einsum("bi,kij,bj->bk", features, cov, features) + 1.0)
    found = predict(model, guide, batch)
    centre = torch.tensor([1.0, -1.0]) + unit * (features @ mean.T)
    torch.testing.assert_close(found.mean, centre)
    torch.testing.assert_close(found.variance, variance)
    scores = torch.distributions.Normal(centre, variance.sqrt()).log_prob(targets.nan_to_num())
    torch.testing.assert_close(found.log_density, torch.where(targets.isnan(), 0.0, scores).sum(-1))
