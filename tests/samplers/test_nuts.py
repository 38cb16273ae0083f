"""NUTS over an adapter's weights draws from a posterior that is known."""

from __future__ import annotations

import torch

from bayes_adapters.errors import ConfigError
from bayes_adapters.heads import BayesianLinear
from bayes_adapters.samplers import nuts
from tests.helpers import core_model, token_batch
from tests.refusals import refuses
from tests.samplers.parts import conjugate


def test_the_posterior_of_a_conjugate_core() -> None:
    """Tolerance: 0.45 standard deviations of the mean and 0.35 in a correlation, about 4 errors of 80 draws."""
    known = conjugate()
    before = torch.get_rng_state()
    found = nuts(known.model, known.batch, num_draws=80, warmup=40, max_tree_depth=3)
    assert torch.equal(torch.get_rng_state(), before)
    covariance = known.precision.inverse()
    scale = covariance.diagonal().sqrt()
    assert float(((found.values.mean(0) - known.mean) / scale).abs().max()) < 0.45
    drawn = found.values.T.cov() / scale[:, None] / scale
    torch.testing.assert_close(drawn, covariance / scale[:, None] / scale, rtol=0.35, atol=0.35)
    assert (covariance / scale[:, None] / scale).fill_diagonal_(0.0).abs().max() > 0.6, "no factorised one would pass"


def test_the_same_seed_gives_the_same_draws_chain_after_chain() -> None:
    model, batch = core_model("global", rank=2, num_data=4), token_batch(4)
    options = {"num_draws": 3, "warmup": 1, "max_tree_depth": 2}
    two = nuts(model, batch, chains=2, **options)
    assert torch.equal(two.values[:3], nuts(model, batch, **options).values)
    assert not torch.equal(two.values[:3], two.values[3:])
    assert not torch.equal(two.values[:3], nuts(model, batch, seed=1, **options).values)


def test_what_nuts_does_not_draw() -> None:
    model = core_model("global", rank=2, num_data=50)
    with refuses(ConfigError, "num_data=50", "5 examples"):
        nuts(model, token_batch())
    local = core_model("token", rank=2, num_data=5)
    with refuses(ConfigError, local.sites[0].name):
        nuts(local, token_batch())
    headed = core_model("global", rank=2, num_data=5, head=BayesianLinear())
    with refuses(ConfigError, "head", "pyro.infer.MCMC"):
        nuts(headed, token_batch())
    with refuses(ConfigError, "warmup", 0):
        nuts(model, token_batch(), warmup=0)
