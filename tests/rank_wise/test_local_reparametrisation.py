"""Local reparametrisation: noise of its own for every example in training, draws of weights in prediction."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, Batch, Bernoulli, Categorical, adapted_layers, evaluating, predict
from bayes_adapters.adapters.forward_pass import ForwardPass, running
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.reparametrisation import LocalReparametrisation
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.guides import RankWise
from bayes_adapters.inference.handlers import PosteriorMean
from bayes_adapters.models import StochasticDown, StochasticFactors
from bayes_adapters.priors import Prior, zero_normal
from bayes_adapters.sites import Granularity, Part, Site
from tests.helpers import WIDTH, bert, logits, token_batch
from tests.rank_wise.parts import LAYERS, pair

Moments = tuple[Tensor, Tensor]
"""Mean and standard deviations of a factor."""


def _layer(A: Moments, B: Moments, examples: int) -> tuple[AdaptedLinear, ForwardPass]:
    sites = [
        Site("A.l", Part.A, ("l",), (2, 5), Granularity.GLOBAL),
        Site("B.l", Part.B, ("l",), (3, 2), Granularity.GLOBAL),
    ]
    base = nn.Linear(5, 3, bias=False)
    nn.init.zeros_(base.weight)
    rows = Rows(Batch({"x": torch.zeros(examples, 1)}))
    weights = {(part, "l"): LocalReparametrisation(*it, "l", rows) for part, it in ((Part.A, A), (Part.B, B))}
    return AdaptedLinear(base, 2, 2.0, path="l", sites=sites), ForwardPass(
        rows, Prior(zero_normal(), sites), weights, 2
    )


def test_outputs_are_distributed_as_under_weight_draws() -> None:
    """200 000 draws of (A, B) of each kind: mean and the whole covariance of outputs and of two tokens, 5 errors."""
    M, L = torch.randn(2, 5), torch.randn(3, 2)
    SA, SB = torch.rand(2, 5) + 0.3, torch.rand(3, 2) + 0.3
    x, count = torch.randn(2, 5), 200_000
    layer, state = _layer((M, SA), (L, SB), count)
    with running(state), torch.no_grad():
        local = layer(x.expand(count, 2, 5)).flatten(1)
    A, B = M + SA * torch.randn(count, 2, 5), L + SB * torch.randn(count, 3, 2)
    drawn = (x @ A.mT @ B.mT).flatten(1)
    error = (drawn.var(0) / count).sqrt()
    assert ((local.mean(0) - drawn.mean(0)).abs() < 5 * math.sqrt(2) * error).all()
    centred = drawn - drawn.mean(0)
    products = centred[:, :, None] * centred[:, None, :]
    assert ((local.T.cov() - products.mean(0)).abs() < 5 * math.sqrt(2) * products.std(0) / math.sqrt(count)).all()


def test_examples_have_noise_of_their_own_and_a_table_one_noise() -> None:
    ones = (torch.randn(2, 5), torch.ones(2, 5)), (torch.randn(3, 2), torch.ones(3, 2))
    layer, state = _layer(*ones, 4000)
    with running(state), torch.no_grad():
        out = layer(torch.ones(4000, 2, 5))
        table = layer(torch.ones(1, 7, 5))
    torch.testing.assert_close(out[:, 0], out[:, 1])
    correlation = torch.corrcoef(torch.cat([out[:-1, 0], out[1:, 0]], 1).T)[:3, 3:]
    assert correlation.abs().max() < 5 / math.sqrt(4000)
    torch.testing.assert_close(table, table[:, :1].expand_as(table))


def test_gradients_are_finite_where_the_variance_is_zero() -> None:
    M, scale = torch.randn(2, 5, requires_grad=True), torch.ones(2, 5, requires_grad=True)
    layer, state = _layer((M, scale), (torch.zeros(3, 2), torch.full((3, 2), 0.5)), 2)
    with running(state):
        out = layer(torch.zeros(2, 1, 5))
    assert out.abs().max() < 1e-8
    out.sum().backward()
    assert M.grad is not None
    assert scale.grad is not None
    assert M.grad.isfinite().all()
    assert scale.grad.isfinite().all()


class _OneLayer(nn.Module):
    """Pools the tokens after one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 6})()
        self.query = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": self.query(x)})()


@pytest.mark.parametrize("tokens", [1, 5])
def test_the_expected_loss_is_that_of_weight_draws(tokens: int) -> None:
    """Noise of A has rank r; independent for every output or token it would be another loss (z = 8 … 37)."""
    torch.manual_seed(0)
    found = []
    for local in (False, True):
        torch.manual_seed(0)
        model = StochasticFactors(_OneLayer(), Categorical(3), targets=["query"], rank=2, num_data=20)
        guide = RankWise(model, init_log_variance=0.0, local_reparametrisation=local)
        with torch.no_grad():
            for loc in guide.loc.values():
                loc.normal_()
            model.head.weight.normal_()
            batch = Batch({"x": torch.randn(8, tokens, 4)}, torch.arange(8) % 3)
            losses = torch.stack([ELBO(model, guide, num_particles=400).terms(batch).nll for _ in range(30)])
        found.append((losses.mean(), losses.var() / len(losses)))
    (plain, plain_error), (local_loss, local_error) = found
    assert abs(plain - local_loss) < 4 * (plain_error + local_error).sqrt()
    assert local_error < plain_error, "examples are independent, so their mean has less noise"


def test_only_a_random_A() -> None:
    """The asymmetric variant: sites of several layers, B a parameter."""
    model = StochasticDown(bert(), Bernoulli(), rank=3, num_data=50, flipout=False)
    guide = RankWise(model, local_reparametrisation=True)
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.normal_()
    assert sum(p.numel() for p in guide.log_variance.parameters()) == 3 * len(LAYERS)
    batch = token_batch()
    assert not torch.equal(logits(guide, batch), logits(guide, batch))
    ELBO(model, guide)(batch).backward()
    assert all(p.grad is not None for p in [*guide.parameters(), *model.trainable_parameters().values()])


def test_training_has_noise_per_example_and_prediction_draws_weights() -> None:
    model, guide = pair(init_log_variance=-3.0, local_reparametrisation=True)
    plain_model, plain = pair(init_log_variance=-3.0)
    batch, site = token_batch(), f"A.{LAYERS[0]}"
    logits(guide, batch)
    assert torch.equal(guide.trace.nodes[site]["value"], guide.loc[site.replace(".", "-")]), "the value is the mean"
    with evaluating(model, guide):
        logits(guide, batch)
        assert not torch.equal(guide.trace.nodes[site]["value"], guide.loc[site.replace(".", "-")])
    first = predict(model, guide, batch, num_samples=4, return_samples=True).samples
    second = predict(plain_model, plain, batch, num_samples=4, return_samples=True).samples
    assert first is not None
    assert torch.equal(first, second), "prediction does not depend on how training drew"  # type: ignore[arg-type]
    assert (first.std(0) > 1e-4).all()


@pytest.mark.parametrize("local", [False, True])
def test_draws_do_not_depend_on_how_the_data_is_cut(local: bool) -> None:
    model, guide = pair(init_log_variance=-3.0, local_reparametrisation=local)
    batch = token_batch()
    whole = predict(model, guide, batch, num_samples=4, return_samples=True)
    parts = predict(model, guide, [batch[:2], batch[2:]], num_samples=4, chunk_size=3, return_samples=True)
    torch.testing.assert_close(whole.samples, parts.samples, rtol=1e-5, atol=1e-6)


def test_the_posterior_mean_is_one_pass_without_noise_in_training_mode_too() -> None:
    _, guide = pair(init_log_variance=0.0, local_reparametrisation=True)
    batch = token_batch()
    with PosteriorMean():
        first, second = logits(guide, batch), logits(guide, batch)
    assert torch.equal(first, second)
    assert not torch.equal(logits(guide, batch), first)


def test_a_conditioned_draw_is_used_as_given() -> None:
    _, guide = pair(init_log_variance=-20.0, local_reparametrisation=True)
    batch, name = token_batch(), f"B.{LAYERS[3]}"
    value = torch.randn(1, WIDTH, 3)
    with torch.no_grad():
        pyro.poutine.condition(guide, {name: value})(batch)
        found = guide.trace.nodes["obs"]["fn"].logits
        guide.loc[name.replace(".", "-")].copy_(value)
    torch.testing.assert_close(found, logits(guide, batch), rtol=1e-3, atol=1e-3)


def test_several_particles_have_noise_of_their_own() -> None:
    model, guide = pair(init_log_variance=-2.0, local_reparametrisation=True)
    with pyro.plate("particles", 3, dim=-2), torch.no_grad():
        guide(token_batch())
    found = guide.trace.nodes["obs"]["fn"].logits
    assert found.shape == (3, 5)
    assert (found.std(0) > 1e-3).all()
    one = ELBO(model, guide).terms(token_batch())
    many = ELBO(model, guide, num_particles=4).terms(token_batch())
    assert many.kl.item() == pytest.approx(one.kl.item(), rel=1e-5)


@pytest.mark.parametrize("prior", [dist.StudentT(3.0, 0.0, 0.2), dist.Laplace(0.0, 0.2)], ids=["StudentT", "Laplace"])
def test_the_kl_is_that_of_weight_draws_whatever_the_prior(prior: dist.TorchDistribution) -> None:
    """At the mean log q/p is larger by half a nat an entry and has no slope that holds the variance. 5 deviations."""
    kls = []
    for local in (False, True):
        model, guide = pair(init_log_variance=-4.0, num_data=1, prior=prior, local_reparametrisation=local)
        with torch.no_grad():
            for name, loc in guide.loc.items():
                loc.copy_(0.1 * torch.randn(loc.shape, generator=torch.Generator().manual_seed(len(name))))
        kls.append(ELBO(model, guide, num_particles=50).terms(token_batch()).kl)
    entries = sum(math.prod(site.shape) for site in model.sites)
    assert kls[1].item() == pytest.approx(kls[0].item(), abs=5 * math.sqrt(2 * entries / 50))
    slopes = torch.autograd.grad(kls[1], list(guide.log_variance.parameters()))
    with torch.no_grad():
        for log_variance in guide.log_variance.values():
            log_variance.fill_(2.0)
    wide = torch.autograd.grad(
        ELBO(model, guide, num_particles=50).terms(token_batch()).kl, list(guide.log_variance.parameters())
    )
    assert all((low < 0).all() and (high > 0).all() for low, high in zip(slopes, wide, strict=True))
