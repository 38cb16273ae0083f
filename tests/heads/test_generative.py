"""The generative last layer: its bound, predictive and density against torch's distributions and plain draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, InverseGamma, MultivariateNormal, Normal, kl_divergence

from bayes_adapters import (
    ELBO,
    AdapterGuide,
    AdapterModel,
    Batch,
    Bernoulli,
    Categorical,
    Gaussian,
    load,
    predict,
    save,
)
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta
from bayes_adapters.heads import GenerativeLastLayer, LinearHead
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.reliability import feature_density
from tests.helpers import WIDTH, Linear, bert, fill_B, token_batch
from tests.refusals import refuses

N = 50
CLASSES = torch.tensor([0, 1, 2, 1, 0])


def generative() -> tuple[AdapterModel, AdapterGuide]:
    """A wide posterior, so that every term matters."""
    torch.manual_seed(3)
    head = GenerativeLastLayer(init_scale=2.0, pooling="cls", prior_scale=1.5, spread_prior=(2.0, 3.0))
    model = fill_B(LoRA(bert(), Categorical(3), head=head, num_data=N))
    guide = Delta(model)
    with torch.no_grad():
        values = dict(guide.named_parameters())
        for name, value in values.items():
            value.add_(0.3 * torch.randn_like(value) * ("log_scale" not in name))
        values["head_posterior.log_concentration"].add_(1.0)
    return model, guide


def parts(guide: AdapterGuide) -> dict[str, Tensor]:
    return {name.rsplit(".", 1)[-1]: value.detach()[0] for name, value in guide.named_parameters()}


def features(model: AdapterModel, batch: Batch) -> Tensor:
    hidden: Tensor = model.backbone(**batch.inputs).last_hidden_state[:, 0].detach()
    return hidden


def scores(q: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """E_q log and log E_q of N(φ; μ_k, Σ) π_k, each (B, K), by torch's multivariate normal."""
    sigma, known, alpha = torch.diag(q["log_spread"].exp()), (2 * q["log_scale"]).exp(), q["log_concentration"].exp()
    joint, evidence = [], []
    for k in range(3):
        within = MultivariateNormal(q["loc"][k], sigma).log_prob(x)
        joint.append(within - 0.5 * torch.trace(torch.linalg.inv(sigma) @ torch.diag(known[k])))
        evidence.append(MultivariateNormal(q["loc"][k], sigma + torch.diag(known[k])).log_prob(x))
    pi = torch.digamma(alpha) - torch.digamma(alpha.sum())
    return torch.stack(joint, -1) + pi, torch.stack(evidence, -1) + (alpha / alpha.sum()).log()


def test_loss_by_hand() -> None:
    model, guide = generative()
    batch = token_batch(targets=CLASSES)
    terms, q = ELBO(model, guide).terms(batch), parts(guide)
    joint, evidence = scores(q, features(model, batch))
    bound = joint[torch.arange(5), CLASSES] - evidence.logsumexp(-1)
    torch.testing.assert_close(terms.nll.detach(), -bound.mean(), rtol=1e-4, atol=1e-4)
    kl = kl_divergence(Normal(q["loc"], q["log_scale"].exp()), Normal(0.0, 1.5)).sum()
    kl = kl + kl_divergence(Dirichlet(q["log_concentration"].exp()), Dirichlet(torch.ones(3)))
    kl = kl - InverseGamma(torch.tensor(2.0), torch.tensor(3.0)).log_prob(q["log_spread"].exp()).sum()
    torch.testing.assert_close(terms.kl.detach(), kl / N, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ELBO(model, guide, num_particles=3).terms(batch).nll, terms.nll, rtol=1e-4, atol=1e-4)


def test_it_is_a_bound_and_its_predictive_is_the_average_of_the_joint() -> None:
    """Against 100 000 draws of centres and class probabilities."""
    model, guide = generative()
    batch = token_batch(targets=CLASSES)
    q, x = parts(guide), features(model, batch)
    torch.manual_seed(0)
    pi = Dirichlet(q["log_concentration"].exp()).sample((100_000,)).log()
    logits = []
    for k in range(3):
        centres = q["loc"][k] + q["log_scale"][k].exp() * torch.randn(100_000, WIDTH)
        logits.append(
            torch.stack([Normal(row, (0.5 * q["log_spread"]).exp()).log_prob(centres).sum(-1) for row in x], -1)
        )
    joint = torch.stack(logits, -1) + pi[:, None]
    exact = joint.log_softmax(-1)[:, torch.arange(5), CLASSES].mean(0)
    ours, evidence = scores(q, x)
    gap = exact - (ours[torch.arange(5), CLASSES] - evidence.logsumexp(-1))
    assert bool((gap > 0).all())
    averaged = joint.logsumexp(0) - torch.tensor(100_000.0).log()
    found = predict(model, guide, batch)
    torch.testing.assert_close(found.mean, averaged.softmax(-1), rtol=0, atol=0.02)
    torch.testing.assert_close(feature_density(model, guide, batch), averaged.logsumexp(-1), rtol=0, atol=0.1)
    torch.testing.assert_close(found.mean, evidence.softmax(-1), rtol=1e-3, atol=1e-4)
    assert not found.epistemic.any()


def test_features_of_other_classes_are_less_dense() -> None:
    """Two classes of three features, trained at fixed features; points far from both."""
    torch.manual_seed(0)
    model = LoRA(Linear(), Categorical(2), targets=["query"], rank=1, head=GenerativeLastLayer(), num_data=200)
    with torch.no_grad():
        model.backbone.query.base_layer.weight.copy_(torch.eye(3, 4))
        model.backbone.query.base_layer.bias.zero_()
    y = torch.randint(0, 2, (200,))
    x = 0.3 * torch.randn(200, 1, 4) + torch.tensor([[1.0, 0.0, 0.0, 0.0], [-1.0, 0.0, 0.0, 0.0]])[y][:, None]
    guide = Delta(model)
    optimizer = torch.optim.Adam(guide.parameters(), 0.05)
    elbo = ELBO(model, guide)
    for _ in range(60):
        optimizer.zero_grad()
        elbo(Batch({"x": x}, y)).backward()
        optimizer.step()
    near, far = Batch({"x": x}), Batch({"x": x + torch.tensor([0.0, 4.0, 0.0, 0.0])})
    assert float((predict(model, guide, near).mean.argmax(-1) == y).float().mean()) > 0.97
    assert bool(feature_density(model, guide, near).min() > feature_density(model, guide, far).max())


def test_beside_stochastic_cores_and_in_files(tmp_path: Path) -> None:
    model = fill_B(StochasticCore(bert(), Categorical(3), rank=3, num_data=N, head=GenerativeLastLayer()), 2.0)
    guide = Contextual(model)
    batch = token_batch(targets=CLASSES)
    ELBO(model, guide, num_particles=2)(batch).backward()
    assert all(p.grad is not None for p in guide.parameters())
    found, density = predict(model, guide, batch, num_samples=8), feature_density(model, guide, batch, num_samples=8)
    assert bool((found.epistemic > 0).all())
    torch.testing.assert_close(predict(model, guide, batch, num_samples=8, chunk_size=3).mean, found.mean)
    numbered = Batch(batch.inputs, index=torch.arange(5))
    torch.testing.assert_close(feature_density(model, guide, [numbered[:2], numbered[2:]], num_samples=8), density)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    torch.testing.assert_close(predict(again, guide_again, batch, num_samples=8).mean, found.mean)
    torch.testing.assert_close(feature_density(again, guide_again, batch, num_samples=8), density)
    point = predict(model, guide, batch, mean_only=True)
    assert bool(point.mean.isfinite().all())


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian()])
def test_what_cannot_be(likelihood: Bernoulli | Gaussian) -> None:
    with refuses(ConfigError, "GenerativeLastLayer", type(likelihood).__name__, "Categorical(2)"):
        LoRA(bert(), likelihood, head=GenerativeLastLayer(), num_data=N)
    with refuses(ConfigError, "spread_prior a", -1.0):
        GenerativeLastLayer(spread_prior=(-1.0, 1.0))
    model = LoRA(bert(), Categorical(3), head=LinearHead())
    with refuses(ConfigError, "LinearHead", "'head.log_density'", "GenerativeLastLayer"):
        feature_density(model, Delta(model), token_batch(targets=CLASSES))
