"""The variational last layer in models: predictions of classes, beside adapters, files, Pyro's guides, mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from bayes_adapters import (
    ELBO,
    Batch,
    Bernoulli,
    Categorical,
    Gaussian,
    Tagging,
    load,
    predict,
    save,
)
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, CrossAttention, MeanField
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.inference.draws import weight_draw
from bayes_adapters.likelihoods import HeteroscedasticGaussian, StudentT
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.training import fit
from tests.heads.last_layer import (
    CLASSES,
    COVARIANCES,
    N,
    last_layer,
    noise,
    phi,
    posterior,
)
from tests.helpers import CONTEXT, bert, fill_B, pad, token_batch
from tests.refusals import refuses


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_predictive_of_classes_is_that_of_drawn_weights(covariance: str) -> None:
    """Brute force: 20 000 W from torch's generator, and noise on each logit."""
    model, guide = last_layer(covariance=covariance, noise_prior=(1.0, 1.0))
    batch = token_batch(targets=CLASSES)
    found = predict(model, guide, batch, num_samples=4000)
    mean, cov = posterior(guide)
    torch.manual_seed(0)
    weights = torch.distributions.MultivariateNormal(mean, cov).sample((20_000,))
    logits = torch.einsum("bi,ski->sbk", phi(model, batch), weights)
    probs = (logits + noise(guide).sqrt() * torch.randn_like(logits)).softmax(-1)
    expected = probs.mean(0)
    torch.testing.assert_close(found.mean, expected, rtol=0, atol=0.025)
    aleatoric = torch.special.entr(probs).sum(-1).mean(0)
    torch.testing.assert_close(found.aleatoric, aleatoric, rtol=0, atol=0.02)
    torch.testing.assert_close(found.epistemic, torch.special.entr(expected).sum(-1) - aleatoric, rtol=0, atol=0.02)
    point = predict(model, guide, batch, mean_only=True)
    torch.testing.assert_close(point.mean, (phi(model, batch) @ mean.T).softmax(-1))


def test_draws_do_not_depend_on_batch_or_chunk_and_cost_one_pass() -> None:
    model, guide = last_layer()
    batch = token_batch(targets=CLASSES)
    rows: list[int] = []
    model.backbone.register_forward_hook(lambda *args: rows.append(len(args[2].last_hidden_state)))
    whole = predict(model, guide, batch, num_samples=8)
    assert rows == [5]
    numbered = Batch(batch.inputs, batch.targets, batch.context, torch.arange(5))
    parts = [predict(model, guide, numbered[rows], num_samples=8) for rows in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(torch.cat([part.mean for part in parts]), whole.mean)
    torch.testing.assert_close(predict(model, guide, batch, num_samples=8, chunk_size=3).total, whole.total)
    torch.testing.assert_close(predict(model, guide, pad(batch, 4), num_samples=8).mean, whole.mean)
    other = predict(model, guide, batch, num_samples=8, seed=1)
    assert not torch.allclose(other.mean, whole.mean, atol=1e-4)


@pytest.mark.parametrize("likelihood", [Categorical(3), Gaussian()], ids=["classes", "numbers"])
def test_beside_a_stochastic_adapter_uncertainties_add(likelihood: Any, tmp_path: Path) -> None:
    head = VariationalLastLayer("low_rank", init_scale=1.0)
    model = fill_B(StochasticCore(bert(), likelihood, rank=3, num_data=N, head=head), 2.0)
    guide = CrossAttention(model, context_dim=CONTEXT, dim=4)
    targets = CLASSES if isinstance(likelihood, Categorical) else torch.randn(5)
    batch = token_batch(targets=targets)
    fit(model, guide, batch, epochs=2, progress=False)
    both = predict(model, guide, batch, num_samples=64)
    torch.testing.assert_close(predict(model, guide, batch, num_samples=64, chunk_size=5).mean, both.mean)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    torch.testing.assert_close(predict(again, guide_again, batch, num_samples=64).epistemic, both.epistemic)
    with torch.no_grad():
        for name, value in guide_again.named_parameters():
            if name.startswith("head_posterior") and ("log_scale" in name or "factor" in name):
                value.fill_(-20.0 if "log_scale" in name else 0.0)
            if name.endswith("log_noise"):
                value.fill_(-20.0)
    adapter_only = predict(again, guide_again, batch, num_samples=64)
    assert bool((both.epistemic > adapter_only.epistemic).all())
    assert bool((adapter_only.epistemic > 0).all())


def test_what_is_frozen_stays_so(tmp_path: Path) -> None:
    model, guide = last_layer()
    guide.head_posterior.requires_grad_(False)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in guide.named_parameters()}
    fit(model, guide, token_batch(targets=CLASSES), epochs=1, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in guide.named_parameters())
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert again.head.config() == model.head.config()
    assert not any(p.requires_grad for p in guide_again.head_posterior.parameters())  # type: ignore[union-attr]


def test_guides_of_pyro_draw_weights_noise_and_outputs() -> None:
    model, _ = last_layer()
    batch = token_batch(targets=CLASSES)
    guide = AutoNormal(poutine.block(model, hide=["obs"]))
    assert SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(batch) > 0
    assert set(guide.median()) == {"head.weight", "head.noise", "head.outputs"}
    numbers, _ = last_layer(Gaussian())
    nodes: Any = poutine.trace(numbers).get_trace(token_batch(targets=torch.randn(5))).nodes
    drawn = nodes["head.noise"]["value"].squeeze()
    torch.testing.assert_close(nodes["obs"]["fn"].scale, drawn.sqrt().expand(5))
    assert isinstance(nodes["head.noise"]["fn"].base_dist, dist.InverseGamma)


def test_what_cannot_be() -> None:
    for likelihood in (Tagging(3), StudentT(), HeteroscedasticGaussian()):
        with refuses(ConfigError, type(likelihood).__name__, "VariationalLastLayer", "BayesianLinear"):
            LoRA(bert(), likelihood, head=VariationalLastLayer(), num_data=N)
    with refuses(ConfigError, "covariance", "'full'", "dense"):
        VariationalLastLayer("full")
    with refuses(ConfigError, "noise_prior", "(1.0,)"):
        VariationalLastLayer(noise_prior=(1.0,))
    with refuses(ConfigError, "noise_prior b", 0):
        VariationalLastLayer(noise_prior=(1.0, 0))
    with refuses(ConfigError, "num_data="):
        LoRA(bert(), Categorical(3), head=VariationalLastLayer())
    model, guide = last_layer()
    with refuses(ConfigError, "'head.weight'", "VariationalLastLayer", "BayesianLinear"):
        weight_draw(model, guide, 0)
    with refuses(ConfigError, "VariationalLastLayer", "BayesianLinear", "AutoNormal"):
        SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step(token_batch(targets=CLASSES))


def test_contextual_cores_train_with_it() -> None:
    model = fill_B(StochasticCore(bert(), Bernoulli(), rank=3, num_data=N, head=VariationalLastLayer()))
    for guide in (Contextual(model), MeanField(model)):
        result = ELBO(model, guide, num_particles=2)(token_batch())
        result.backward()
        assert all(p.grad is not None for p in guide.head_posterior.parameters())  # type: ignore[union-attr]
