"""Normalising flows: the density is that of the draws, and they find what a mean field cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from bayes_adapters import ELBO, Bernoulli, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Flow, MeanField
from bayes_adapters.models import AdapterDropout, DiagonalCore
from tests.guides.parts import lives, of_a_and_b, product, product_by_mean_field, regression, trained
from tests.helpers import Linear, bert, core_model, token_batch
from tests.refusals import refuses

LAYERS = (["coupling"], ["autoregressive"], ["spline"], ["coupling", "spline", "autoregressive"])


def bent(guide: Flow) -> Flow:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in guide.networks.parameters():
            parameter.normal_(0.0, 0.3)
    return guide


def two(**options: Any) -> DiagonalCore:
    """Two numbers in all, the fewest that a coupling takes."""
    return DiagonalCore(Linear(), Bernoulli(), num_data=3, rank=2, targets=["query"], **options)


@pytest.mark.parametrize("layers", LAYERS, ids="-".join)
def test_it_starts_as_a_mean_field(layers: list[str]) -> None:
    for model in (two(), core_model("global")):
        guide = Flow(model, layers=layers, init_scale=0.3)
        q = guide.joint()
        w = q.rsample((4,))
        start = torch.distributions.Normal(guide.loc, 0.3).log_prob(w).sum(-1)
        torch.testing.assert_close(q.log_prob(w), start, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(guide.joint().log_prob(w + 0.1), start_at(guide, w + 0.1), rtol=1e-5, atol=1e-4)


def start_at(guide: Flow, w: Tensor) -> Tensor:
    return torch.distributions.Normal(guide.loc, guide.log_scale.exp()).log_prob(w).sum(-1)


@pytest.mark.parametrize("layers", LAYERS, ids="-".join)
def test_the_density_is_the_change_of_variables(layers: list[str]) -> None:
    """By the Jacobian of the whole map; at a draw and, inverted afresh, at the same point."""
    for model in (two(), core_model("global", rank=2, targets=["query"])):
        guide = bent(Flow(model, layers=layers))
        noise = 0.7 * torch.randn(guide.size)

        def onto(x: Tensor, guide: Flow = guide) -> Tensor:
            for transform in guide.joint().transforms:
                x = transform(x)
            return x

        volume = torch.linalg.slogdet(jacobian(onto, noise))[1]
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - volume
        torch.testing.assert_close(guide.joint().log_prob(onto(noise)), expected, rtol=1e-4, atol=1e-3)
        q = guide.joint()
        w = q.rsample((3, 1))
        torch.testing.assert_close(q.log_prob(w), guide.joint().log_prob(w.clone()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("layers", LAYERS, ids="-".join)
def test_the_density_integrates_to_one(layers: list[str]) -> None:
    guide = bent(Flow(two(), layers=layers, init_scale=1.0))
    axis = torch.linspace(-14.0, 14.0, 561)
    grid = torch.cartesian_prod(axis, axis) + guide.loc.detach()
    with torch.no_grad():
        total = guide.joint().log_prob(grid).exp().sum() * 0.05**2
    assert float(total) == pytest.approx(1.0, abs=2e-3)


def test_a_draw_and_its_density_take_one_step_of_the_network() -> None:
    """Not D, as the density of an autoregressive map takes at any other point."""
    guide, calls = Flow(core_model("global"), layers=["autoregressive", "autoregressive"]), []
    for network in guide.networks:
        network.register_forward_hook(lambda *_: calls.append(1))
    ELBO(guide.model, guide, num_particles=3)(token_batch()).backward()
    assert len(calls) == 2


def test_a_gaussian_with_correlations_is_found() -> None:
    """The mean field loses ½ (Σ log Λ_ii − log |Λ|) nats; the flow gets nearly all of it back."""
    model, batch, _, precision = regression()
    gap = float(0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)) / 12)
    factorised, flow = trained(model, MeanField(model), batch), trained(model, Flow(model), batch)
    assert (factorised - flow) / gap == pytest.approx(1.0, abs=0.1)


def test_a_product_of_two_weights_bends_the_posterior() -> None:
    """It lies along a hyperbola, which no factorised Gaussian follows; the loss is at least −log p(y)."""
    model, batch, least = product()
    torch.manual_seed(0)
    flow = Flow(model, init_scale=0.3)
    with torch.no_grad():
        flow.loc.copy_(of_a_and_b(flow, 0.7))
    assert least - 0.01 < trained(model, flow, batch, lr=0.05) < product_by_mean_field() - 0.1


def test_it_fits_predicts_saves_and_loads(tmp_path: Path) -> None:
    model, guide = lives(Flow, tmp_path / "adapter", layers=["coupling", "spline", "autoregressive"])
    with refuses(ConfigError, "TransformedDistribution", "mean_only"):
        predict(model, guide, token_batch(), mean_only=True)


def test_what_is_refused() -> None:
    with refuses(ConfigError, "Flow", "token"):
        Flow(core_model("token"))
    with refuses(ConfigError, "Flow", "mask", "MCDropout"):  # discrete
        Flow(AdapterDropout(bert(), Bernoulli(), granularity="global", rank=2))
    with refuses(ConfigError, "layers", "'coupling'"):
        Flow(core_model("global"), layers=[])
    with refuses(ConfigError, "layers", "'couplings'", "coupling"):
        Flow(core_model("global"), layers=["couplings"])
    with refuses(ConfigError, "'coupling'", 1, "spline"):
        Flow(DiagonalCore(Linear(), Bernoulli(), num_data=3, rank=1, targets=["query"]))
    needs = 4e-9 * 3 * 36**2
    with refuses(ConfigError, f"{needs:.3g} GB", "max_gigabytes", "'coupling'", "LowRank"):
        Flow(core_model("global"), layers=["autoregressive"], max_gigabytes=1e-6)
    with refuses(ConfigError, "hidden", 0):
        Flow(core_model("global"), hidden=0)
