"""A posterior's temperature scales its covariance and moves no mean."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch

from bayes_adapters import Bernoulli, Gaussian, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import CrossAttention, Delta, LowRank, MCDropout, MeanField
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.inference.tempering import Tempering
from bayes_adapters.models import AdapterDropout
from tests.helpers import CONTEXT, bert, core_model, token_batch
from tests.refusals import refuses

BATCH = token_batch()


def pair(guide: Any = MeanField, **options: Any) -> tuple[Any, Any]:
    model = core_model(**{"granularity": "global"} | options)
    torch.manual_seed(1)
    return model, guide(model)


def test_one_is_the_posterior_itself() -> None:
    model, guide = pair()
    assert torch.equal(predict(model, guide, BATCH, temperature=1.0).mean, predict(model, guide, BATCH).mean)


def test_the_draws_of_a_gaussian_are_those_of_its_power() -> None:
    """τ = 0.25 halves every standard deviation: the same draws as those of a guide that has halved them itself."""
    model, guide = pair()
    cold = predict(model, guide, BATCH, num_samples=5, return_samples=True, temperature=0.25).samples
    with torch.no_grad():
        for rho in guide.rho.values():
            rho.sub_(torch.tensor(2.0).log())
    torch.testing.assert_close(cold, predict(model, guide, BATCH, num_samples=5, return_samples=True).samples)


def test_a_joint_gaussian_is_scaled_as_a_whole() -> None:
    model, guide = pair(LowRank)
    hot = predict(model, guide, BATCH, num_samples=5, return_samples=True, temperature=4.0).samples
    with torch.no_grad():
        guide.factor.mul_(2.0)
        guide.log_scale.add_(torch.tensor(2.0).log())
    torch.testing.assert_close(hot, predict(model, guide, BATCH, num_samples=5, return_samples=True).samples)


def test_local_cores_keep_their_mean_and_have_tau_times_the_variance() -> None:
    model, guide = pair(lambda m: CrossAttention(m, context_dim=CONTEXT, dim=4), granularity="token")
    first = model.sites[0].name
    drawn = {}
    for temperature in (1.0, 9.0):
        draws, plate = KeyedDraws(3, torch.arange(1), BATCH.ids), pyro.plate("samples", 1, dim=-2)
        with torch.no_grad(), draws, Tempering(temperature), plate:
            guide(BATCH)
        node = guide.trace.nodes[first]
        drawn[temperature] = node["value"] - node["fn"].mean
    torch.testing.assert_close(drawn[9.0], 3.0 * drawn[1.0])
    assert drawn[1.0].abs().max() > 0.01


def test_colder_draws_agree_more_and_points_do_not_move() -> None:
    model, guide = pair()
    parts = [float(predict(model, guide, BATCH, num_samples=32, temperature=t).epistemic.mean()) for t in (1e-4, 1, 4)]
    assert parts[0] < 0.01 * parts[1] < parts[1] < parts[2]
    model, guide = pair(Delta)
    assert torch.equal(predict(model, guide, BATCH, temperature=4.0).mean, predict(model, guide, BATCH).mean)


def test_given_draws_are_scaled_about_their_mean() -> None:
    model, _ = pair()
    draws = {site.name: torch.randn(6, *site.shape) for site in model.sites}
    scaled = {name: value.mean(0) + 0.5 * (value - value.mean(0)) for name, value in draws.items()}
    found = predict(model, draws, BATCH, return_samples=True, temperature=0.25).samples
    torch.testing.assert_close(found, predict(model, scaled, BATCH, return_samples=True).samples)


def test_what_has_no_spread_about_a_mean_is_refused() -> None:
    model, guide = pair()
    for wrong in (0.0, -1.0, float("inf")):
        with refuses(ConfigError, "temperature", wrong):
            predict(model, guide, BATCH, temperature=wrong)
    with refuses(ConfigError, "function", "temperature=0.5"):
        predict(model, lambda batch: None, BATCH, temperature=0.5)
    masked = AdapterDropout(bert(), Bernoulli(), rank=2, targets=["query"])
    with refuses(ConfigError, "discrete", "temperature=1"):
        predict(masked, MCDropout(masked), BATCH, temperature=0.5)
    model, guide = pair(likelihood=Gaussian(), head=VariationalLastLayer())
    with refuses(ConfigError, "integrated out"):
        predict(model, guide, BATCH, temperature=0.5)


@pytest.mark.parametrize("chunk", [1, 3])
def test_a_temperature_depends_on_no_chunk(chunk: int) -> None:
    model, guide = pair(granularity="token")
    whole = predict(model, guide, BATCH, num_samples=5, temperature=0.5)
    torch.testing.assert_close(
        predict(model, guide, BATCH, num_samples=5, temperature=0.5, chunk_size=chunk).mean, whole.mean
    )
