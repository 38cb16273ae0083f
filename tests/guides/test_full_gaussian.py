"""A dense covariance, per layer and over all layers, against torch's and against a posterior that is known."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from bayes_adapters import ELBO, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, FullGaussian, LowRank, MeanField
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.surgery.export import to_lora
from tests.guides.parts import dense, factors, lives, regression, trained
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses


def spread(guide: FullGaussian) -> FullGaussian:
    torch.manual_seed(3)
    with torch.no_grad():
        for lower in guide.lower:
            lower.normal_(0.0, lower.shape[-1] ** -0.5)  # the upper half, too, which must not count
        guide.log_scale.normal_(-2.0, 0.3)
    return guide


@pytest.mark.parametrize("over", ["layer", "all"])
def test_density_entropy_and_kl_are_those_of_torchs_gaussian(over: str) -> None:
    model = factors(rank=1)
    guide = spread(FullGaussian(model, over=over))
    q, full = guide.joint(), dense(guide)
    w = q.sample((5,))
    torch.testing.assert_close(q.log_prob(w), full.log_prob(w), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(q.entropy(), full.entropy(), rtol=1e-4, atol=1e-3)
    prior = MultivariateNormal(torch.zeros(guide.size), 0.09 * torch.eye(guide.size))
    for particles in (1, 3):
        found = ELBO(model, guide, num_particles=particles).terms(token_batch()).kl
        torch.testing.assert_close(found, kl_divergence(full, prior) / 20, rtol=1e-4, atol=1e-4)


def test_entries_correlate_within_a_layer_and_its_parts_only() -> None:
    model = factors(rank=1)
    guide = spread(FullGaussian(model))
    found = dense(guide).covariance_matrix.abs() > 0
    owner = torch.zeros(guide.size, dtype=torch.long)
    for site in model.sites:
        owner[guide.layout[site.name]] = model.layers.index(site.layers[0])
    assert torch.equal(found, owner[:, None] == owner)
    everything = spread(FullGaussian(model, over="all"))
    assert bool((dense(everything).covariance_matrix != 0).all())


def test_the_covariance_of_keyed_draws_is_that_of_the_density() -> None:
    guide = spread(FullGaussian(factors(rank=1, targets=["0.attention.self.query"])))
    with torch.no_grad(), KeyedDraws(0, torch.arange(20_000), torch.arange(1)), pyro.plate("samples", 20_000, dim=-2):
        w = pyro.sample("joint", guide.joint(), infer={"hyper_site": "joint"})[:, 0]
    covariance = dense(guide).covariance_matrix.detach()
    torch.testing.assert_close(torch.cov(w.T), covariance, rtol=0, atol=0.05 * float(covariance.max()))
    torch.testing.assert_close(w.mean(0), guide.loc.detach(), rtol=0, atol=0.02)


def test_the_optimum_is_the_posterior_where_mean_field_is_too_narrow() -> None:
    model, batch, mean, precision = regression()
    covariance = torch.linalg.inv(precision)
    guide, factorised = FullGaussian(model), MeanField(model)
    losses = [trained(model, g, batch) for g in (guide, factorised)]
    q, deviation = guide.joint(), covariance.diagonal().sqrt()
    assert ((q.mean - mean) / deviation).abs().max() < 0.1
    scaled = dense(guide).covariance_matrix / deviation / deviation[:, None]
    torch.testing.assert_close(scaled, covariance / deviation / deviation[:, None], rtol=0, atol=0.1)
    narrow = factorised.rho["core-global"].exp().flatten()
    torch.testing.assert_close(narrow, precision.diagonal() ** -0.5, rtol=0.05, atol=0)
    # What mean field gives away is exactly ½ (Σ log Λ_ii − log |Λ|), per datum.
    gap = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)) / 12
    assert float(gap) > 0.1, "a case without correlations would show nothing"
    assert losses[1] - losses[0] == pytest.approx(float(gap), rel=0.1)


@pytest.mark.parametrize("over", ["layer", "all"])
def test_it_fits_predicts_saves_and_loads(over: str, tmp_path: Path) -> None:
    model, guide = lives(FullGaussian, tmp_path / "adapter", over=over)
    lora, batch = to_lora(model, guide, bert()), token_batch()
    expected = predict(model, guide, batch, mean_only=True).mean
    torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, expected, rtol=1e-4, atol=1e-5)


def test_what_is_refused() -> None:
    model = core_model("global")
    needs = 4e-9 * 36**2
    with refuses(ConfigError, "over='all'", f"{needs:.3g} GB", "over='layer'", "LowRank", "max_gigabytes"):
        FullGaussian(model, over="all", max_gigabytes=3e-6)
    with refuses(ConfigError, "over='layer'", "LowRank"):
        FullGaussian(model, max_gigabytes=1e-6)
    with refuses(ConfigError, "over", "'layers'", "layer"):
        FullGaussian(model, over="layers")
    with refuses(ConfigError, "init_scale", -1.0):
        FullGaussian(model, init_scale=-1.0)
    with refuses(ConfigError, "max_gigabytes", 0):
        FullGaussian(model, max_gigabytes=0)
    with refuses(ConfigError, "FullGaussian", "token"):
        FullGaussian(core_model("token"))
    assert LowRank(model).size == 36
