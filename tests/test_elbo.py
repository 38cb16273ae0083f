"""The ELBO against stock Pyro and against closed forms."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.nn import functional as F

from bayes_adapters import ELBO, Categorical, Gaussian, KLMode, KLWeight
from bayes_adapters.distributions import base_distribution
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.schedules import LinearWarmup
from tests.helpers import CASES, GUIDES, bert, core_model, fill_B, token_batch

# ---- stock Pyro ----


@pytest.mark.parametrize(("granularity", "name"), CASES)
def test_equals_stock_mean_field_elbo(granularity: str, name: str) -> None:
    model = core_model(granularity)
    guide, batch = GUIDES[name](model), token_batch()
    torch.manual_seed(3)
    ours = ELBO(model, guide)(batch)
    torch.manual_seed(3)
    stock = TraceMeanField_ELBO().differentiable_loss(model, guide, batch) / 50  # of all N examples
    assert ours.item() == pytest.approx(stock.item(), rel=1e-6)
    parameters = list((model.trainable_parameters() | dict(guide.named_parameters())).values())
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(stock, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6 * float(b.abs().max()) + 1e-8)


@pytest.mark.parametrize(
    ("granularity", "name"), [("token", "cross_attention"), ("sequence", "contextual"), ("global", "mean_field")]
)
def test_particles_equal_stock_vectorised_particles(granularity: str, name: str) -> None:
    model = core_model(granularity)
    guide, batch = GUIDES[name](model), token_batch()
    torch.manual_seed(3)
    ours = ELBO(model, guide, num_particles=4)(batch)
    torch.manual_seed(3)
    stock = TraceMeanField_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    assert 50 * ours.item() == pytest.approx(stock.differentiable_loss(model, guide, batch).item(), rel=1e-6)


def test_particles_do_not_rescale_anything() -> None:
    """With a posterior of no width every particle is the same, so their number must not show."""
    for granularity in ("token", "sequence", "global"):
        model = core_model(granularity)
        guide, batch = MeanField(model, init_scale=1e-6), token_batch()
        one, five = (ELBO(model, guide, num_particles=n).terms(batch) for n in (1, 5))
        torch.testing.assert_close(one.nll, five.nll, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.kl, five.kl, rtol=1e-6, atol=0)


# ---- closed forms ----

ORACLES = [
    (0.1, 0.25, 0.18310645),
    (0.0, 0.25, 0.05810645),
    (0.0, 0.2, 0.0),
    (0.0, 0.0025, 3.88210),
    (0.0, 0.00125, 4.57519),
]


def _fixed(model: StochasticCore, mu: float, sigma: float) -> MeanField:
    guide = MeanField(model)
    with torch.no_grad():
        for key in guide.loc:
            guide.loc[key].fill_(mu)
            guide.rho[key].fill_(math.log(sigma))
    return guide


@pytest.mark.parametrize(("mu", "sigma", "kl"), ORACLES)
@pytest.mark.parametrize("rank", [1, 3])
def test_gaussian_kl_oracles(mu: float, sigma: float, kl: float, rank: int) -> None:
    """Four sites, r² entries each. Global: once per N = 50. Sequence: once an example. Token: once a real token."""
    batch = token_batch()
    tokens = batch.inputs["attention_mask"].sum().item() / batch.size
    for granularity, count in {"global": 1 / 50, "sequence": 1.0, "token": tokens}.items():
        model = core_model(granularity, rank)
        found = ELBO(model, _fixed(model, mu, sigma)).terms(batch).kl.item()
        assert found == pytest.approx(4 * rank**2 * kl * count, rel=1e-5, abs=1e-5), granularity


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_per_token_mean_is_the_kl_of_one_core(granularity: str) -> None:
    model = core_model(granularity)
    guide = _fixed(model, 0.1, 0.25)
    found = ELBO(model, guide, kl_mode="per_token_mean", kl_weight=2.0).terms(token_batch())
    assert found.kl.item() == pytest.approx(2 * 9 * 0.18310645, rel=1e-5)


def test_per_token_mean_normalises_each_example_by_its_own_length() -> None:
    """One example's KL differs from the other's: the mean over examples of per-example means, not a pooled mean."""
    model = core_model("token")
    guide = Contextual(model)
    both = token_batch(4)
    with torch.no_grad():  # without noise upstream the KL is a function of the example
        for head in guide.heads.values():
            head.net[2].weight[9:].zero_()
            head.net[2].bias[9:].fill_(-50.0)
    parts = [ELBO(model, guide, kl_mode=KLMode.PER_TOKEN_MEAN).terms(both[i : i + 1]).kl.item() for i in range(4)]
    assert ELBO(model, guide, kl_mode=KLMode.PER_TOKEN_MEAN).terms(both).kl.item() == pytest.approx(
        sum(parts) / 4, rel=1e-4
    )
    assert max(parts) - min(parts) > 0


def test_per_token_mean_leaves_global_cores_alone() -> None:
    model = core_model("global")
    guide, batch = MeanField(model), token_batch()
    full, normalised = (ELBO(model, guide, kl_mode=mode).terms(batch).kl for mode in KLMode)
    assert full.item() == normalised.item() > 0


def test_global_kl_is_one_over_n_whatever_the_batch() -> None:
    values = []
    for size, n in ((5, 50), (2, 50), (5, 500)):
        model = core_model("global", num_data=n)
        values.append(ELBO(model, _fixed(model, 0.1, 0.25)).terms(token_batch(size)).kl.item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert values[0] == pytest.approx(10 * values[2], rel=1e-6)


def test_local_kl_counts_once_per_example() -> None:
    """Duplicating every example changes neither term: per datum, not per batch and not per data set."""
    batch = token_batch(3)
    twice = batch[torch.tensor([0, 1, 2, 0, 1, 2])]
    for num_data in (50, 5000):
        model = core_model("token", num_data=num_data)
        guide = _fixed(model, 0.1, 0.25)
        once, double = (ELBO(model, guide).terms(b).kl.item() for b in (batch, twice))
        assert once == pytest.approx(double, rel=1e-6)
        assert once == pytest.approx(4 * 9 * 0.18310645 * batch.inputs["attention_mask"].sum().item() / 3, rel=1e-5)


@pytest.mark.parametrize("granularity", ["token", "sequence", "global"])
def test_kl_weight_multiplies_only_the_kl(granularity: str) -> None:
    model = core_model(granularity)
    guide, batch = MeanField(model), token_batch()

    def terms(weight: Any, step: int = 0) -> Any:
        torch.manual_seed(2)
        return ELBO(model, guide, kl_weight=weight).terms(batch, step)

    one, third, zero = terms(1.0), terms(0.3), terms(0.0)
    assert third.nll.item() == one.nll.item() == zero.nll.item()
    assert third.kl.item() == pytest.approx(0.3 * one.kl.item(), rel=1e-6)
    assert zero.kl.item() == 0.0
    assert zero.loss.item() == zero.nll.item()
    schedule = LinearWarmup(steps=4)
    assert terms(schedule, 1).kl.item() == pytest.approx(0.5 * one.kl.item(), rel=1e-6)
    assert terms(schedule, 1).kl_weight == 0.5


def test_kl_weight_works_around_stock_elbos() -> None:
    model = core_model()
    guide, batch = Contextual(model), token_batch()
    torch.manual_seed(2)
    ours = ELBO(model, guide, kl_weight=0.01, kl_mode="per_token_mean")(batch)
    torch.manual_seed(2)
    with KLWeight(0.01, KLMode.PER_TOKEN_MEAN):
        stock = TraceMeanField_ELBO().differentiable_loss(model, guide, batch) / 50  # of all N examples
    assert ours.item() == pytest.approx(stock.item(), rel=1e-6)


def test_kl_without_closed_form_is_unbiased() -> None:
    model = core_model("global", rank=1, prior=dist.StudentT(5.0, 0.0, 0.2), num_data=1)
    guide, batch = _fixed(model, 0.3, 0.15), token_batch(1, 2)
    torch.manual_seed(0)
    terms = [ELBO(model, guide, num_particles=1000).terms(batch).kl.item() for _ in range(5)]
    q, p = torch.distributions.Normal(0.3, 0.15), torch.distributions.StudentT(5.0, 0.0, 0.2)
    draws = q.sample((400_000,)).double()
    exact = (q.log_prob(draws) - p.log_prob(draws)).mean().item() * 4
    per_draw = (q.log_prob(draws) - p.log_prob(draws)).std().item() * 2
    assert sum(terms) / 5 == pytest.approx(
        exact, abs=4 * per_draw / math.sqrt(5000) + 4 * 2 * per_draw / math.sqrt(400_000)
    )
    assert exact > 1.0
    loss = ELBO(model, guide)(batch)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(loss, list(guide.parameters())))


def test_delta_kl_is_minus_the_log_prior() -> None:
    model = core_model("global")
    guide = Delta(model)
    expected = -torch.distributions.Normal(0.0, 0.2).log_prob(guide.loc["core-global"]).sum() / 50
    torch.testing.assert_close(ELBO(model, guide).terms(token_batch()).kl, expected)


def test_plain_lora_is_maximum_likelihood() -> None:
    model = fill_B(LoRA(bert(), Categorical(3), rank=2))  # type: ignore[arg-type]
    batch = token_batch(targets=torch.tensor([0, 2, 1, 1, 0]))
    terms = ELBO(model, Delta(model)).terms(batch)
    expected = F.cross_entropy(model(batch), batch.targets)
    torch.testing.assert_close(terms.loss, expected)
    assert terms.kl.item() == 0.0


def test_scale_statistics_skip_padding() -> None:
    model = core_model()
    guide, batch = Contextual(model), token_batch()
    torch.manual_seed(1)
    terms = ELBO(model, guide).terms(batch, with_scales=True)
    torch.manual_seed(1)
    guide(batch)
    assert set(terms.scales) == {site.name for site in model.sites}
    for name, (mean, low, high) in terms.scales.items():
        scale = base_distribution(guide.trace.nodes[name]["fn"]).scale  # (B, T, r, r)
        real = scale[batch.token_mask]
        assert (mean, low, high) == pytest.approx((real.mean().item(), real.min().item(), real.max().item()))
        assert abs(mean - scale.mean().item()) > 1e-4, "padding has another scale"
    with torch.no_grad():
        for head in guide.heads.values():
            for p in head.parameters():
                p.zero_()
    flat = ELBO(model, guide).terms(batch, with_scales=True)
    assert set(flat.scales.values()) == {(0.25, 0.25, 0.25)}
    log = flat.log()
    assert log["scale_mean"] == 0.25
    assert log["loss"] == pytest.approx(log["nll"] + log["kl"], rel=1e-6)
    assert log["kl_over_nll"] == pytest.approx(log["kl"] / log["nll"])


def test_nll_of_a_regression_is_the_gaussian_density() -> None:
    model = core_model("token", likelihood=Gaussian(init_log_scale=-0.5))
    batch = token_batch(targets=torch.randn(5))
    guide = MeanField(model)
    torch.manual_seed(1)
    terms = ELBO(model, guide).terms(batch)
    torch.manual_seed(1)
    guide(batch)
    f = guide.trace.nodes["obs"]["fn"].loc
    expected = -torch.distributions.Normal(f, math.exp(-0.5)).log_prob(batch.targets).mean()
    torch.testing.assert_close(terms.nll, expected)


def test_the_loss_keeps_no_graph_of_the_last_step() -> None:
    model = core_model()
    guide = Contextual(model)
    ELBO(model, guide)(token_batch())
    assert len(guide.trace.nodes) == 0


@pytest.mark.parametrize("name", ["contextual", "cross_attention", "mean_field"])
def test_bf16_autocast_is_close_and_densities_stay_float32(name: str) -> None:
    model = core_model()
    guide, batch = GUIDES[name](model), token_batch()
    elbo = ELBO(model, guide)
    torch.manual_seed(4)
    exact = elbo.terms(batch)
    torch.manual_seed(4)
    with torch.autocast("cpu", torch.bfloat16):
        terms = elbo.terms(batch)
        guide(batch)
    for site in model.sites:
        fn = guide.trace.nodes[site.name]["fn"]
        core = fn.base_dist.base_dist.base_dist
        assert (core.loc.dtype, core.scale.dtype) == (torch.float32, torch.float32)
    assert guide.trace.nodes["obs"]["fn"].logits.dtype == torch.float32
    guide.trace.nodes.clear()
    assert terms.loss.dtype == torch.float32
    assert terms.nll.item() != exact.nll.item(), "autocast was not active"
    assert terms.nll.item() == pytest.approx(exact.nll.item(), abs=0.05)
    assert terms.kl.item() == pytest.approx(exact.kl.item(), rel=0.02)
    terms.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.parameters() if p.grad is not None)
