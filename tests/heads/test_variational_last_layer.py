"""The variational last layer: its bound of classes, KL and gradients, each against arithmetic of another kind."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bayes_adapters import (
    ELBO,
    Bernoulli,
    Categorical,
    Gaussian,
)
from bayes_adapters.likelihoods import GaussianOutputs
from tests.heads.last_layer import (
    CLASSES,
    COVARIANCES,
    N,
    last_layer,
    noise,
    phi,
    posterior,
)
from tests.helpers import WIDTH, pad, token_batch


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_loss_by_hand(covariance: str) -> None:
    """Bound, KL per data set, and the density of the noise, each from its formula."""
    model, guide = last_layer(covariance=covariance, noise_prior=(2.0, 0.3))
    batch = token_batch(targets=CLASSES)
    terms = ELBO(model, guide).terms(batch)
    mean, cov = posterior(guide)
    features, sigma = phi(model, batch), noise(guide)
    variance = torch.einsum("bi,kij,bj->bk", features, cov, features) + sigma
    logits = features @ mean.T
    bound = logits[torch.arange(5), CLASSES] - torch.logsumexp(logits + 0.5 * variance, -1)
    torch.testing.assert_close(terms.nll, -bound.mean(), check_dtype=False, rtol=1e-4, atol=1e-5)
    s2, width = 1.0 / WIDTH, features.shape[1]  # s₀ = 1
    trace = cov.diagonal(dim1=-2, dim2=-1).sum(-1) / s2
    kl = 0.5 * (trace + mean.square().sum(-1) / s2 - width + width * math.log(s2) - torch.logdet(cov))
    density = 2.0 * math.log(0.3) - math.lgamma(2.0) - 3.0 * sigma.log() - 0.3 / sigma
    torch.testing.assert_close(terms.kl, (kl - density).sum() / N, check_dtype=False, rtol=1e-4, atol=1e-5)


def test_without_variance_it_is_the_cross_entropy_of_a_linear_layer() -> None:
    model, guide = last_layer(noise_prior=None)
    batch = token_batch(targets=CLASSES)
    with torch.no_grad():
        dict(guide.named_parameters())["head_posterior.weight.log_scale"].fill_(-20.0)
    logits = phi(model, batch) @ posterior(guide)[0].T
    torch.testing.assert_close(ELBO(model, guide).terms(batch).nll, F.cross_entropy(logits, CLASSES))


@pytest.mark.parametrize("size", [0.01, 0.3, 3.0])
def test_it_is_a_bound_and_tight_where_variances_are_small(size: float) -> None:
    """Against 100 000 draws of the outputs; the gap is of the order of the variance."""
    torch.manual_seed(0)
    mean, variance = torch.randn(6, 4), size * torch.rand(6, 4)
    draws = mean + variance.sqrt() * torch.randn(100_000, 6, 4)
    outputs = GaussianOutputs(mean, variance)
    for likelihood, targets, columns in ((Categorical(4), torch.arange(6) % 4, 4), (Bernoulli(), torch.rand(6), 1)):
        part = GaussianOutputs(outputs.mean[:, :columns], outputs.variance[:, :columns])
        scores = likelihood.distribution(draws[..., :columns]).log_prob(targets)
        gap = scores.mean(0) - likelihood.expected(part).log_prob(targets)
        error = scores.std(0) / math.sqrt(100_000)
        assert bool((gap > -4 * error).all())
        assert bool((gap < size).all())


def test_particles_average_bounds_and_the_kl_stays_one() -> None:
    model, guide = last_layer()
    batch = token_batch(targets=CLASSES)
    one, three = (ELBO(model, guide, num_particles=n).terms(batch) for n in (1, 3))
    torch.testing.assert_close(one.nll, three.nll)
    torch.testing.assert_close(one.kl, three.kl)
    parts = [ELBO(model, guide).terms(part) for part in (batch[:2], batch[2:])]
    torch.testing.assert_close(one.nll, 0.4 * parts[0].nll + 0.6 * parts[1].nll)  # accumulated over a batch
    torch.testing.assert_close(one.kl, parts[0].kl)
    torch.testing.assert_close(ELBO(model, guide)(pad(batch, 3)), one.loss)


@pytest.mark.parametrize("likelihood", [Categorical(3), Gaussian()], ids=["classes", "numbers"])
def test_gradients_against_finite_differences(likelihood: Any) -> None:
    """Nothing is drawn, so that the loss is a function of the parameters."""
    model, guide = last_layer(likelihood, covariance="dense", noise_prior=(2.0, 0.3))
    model, guide = model.double(), guide.double()
    batch = token_batch(targets=CLASSES if isinstance(likelihood, Categorical) else torch.randn(5).double())
    elbo = ELBO(model, guide)
    elbo(batch).backward()
    checked = 0
    for name, p in elbo.named_parameters():
        if not p.requires_grad or ("head_posterior" not in name and "lora_B" not in name and "log_scale" not in name):
            continue
        torch.manual_seed(0)
        direction = torch.randn_like(p)
        values = []
        for step in (1e-4, -1e-4):
            with torch.no_grad():
                p.add_(step * direction)
                values.append(elbo(batch))
                p.sub_(step * direction)
        found = (values[0] - values[1]) / 2e-4
        torch.testing.assert_close((p.grad * direction).sum(), found, rtol=1e-3, atol=1e-7, msg=name)
        checked += 1
    assert checked >= 5


def test_under_autocast_the_head_stays_in_float32() -> None:
    """With moments in bfloat16, which has 8 bits, the losses would differ in the third digit."""
    model, guide = last_layer(covariance="dense")
    batch = token_batch(targets=CLASSES)
    seen: list[Tensor] = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.autocast("cpu", torch.bfloat16):
        loss = ELBO(model, guide).terms(batch).nll
    features = torch.cat([seen[0].float(), torch.full((5, 1), WIDTH**0.5)], 1)
    mean, cov = posterior(guide)
    variance = torch.einsum("bi,kij,bj->bk", features, cov, features) + noise(guide)
    logits = features @ mean.T
    bound = logits[torch.arange(5), CLASSES] - torch.logsumexp(logits + 0.5 * variance, -1)
    torch.testing.assert_close(loss.detach(), -bound.mean())


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_a_model_in_half_precision_keeps_the_heads_kl(covariance: str) -> None:
    """Parameters of the posterior are the guide's, and its prior is not rounded either: 1.1² / 16 has no 8 bits."""
    model, guide = last_layer(covariance=covariance, prior_scale=1.1)
    before = ELBO(model, guide).terms(token_batch(targets=CLASSES)).kl
    after = ELBO(model.to(torch.bfloat16), guide).terms(token_batch(targets=CLASSES)).kl
    torch.testing.assert_close(after, before, rtol=1e-6, atol=0)
