"""``Delta`` under priors on a part of the reals: the estimate stays in the support and is the density's maximum."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import constraints

from bayes_adapters import ELBO, Bernoulli, load, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta
from bayes_adapters.models import StochasticDown
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses

PRIORS: dict[str, TorchDistributionMixin] = {
    "half-normal": dist.HalfNormal(0.5),
    "exponential": dist.Exponential(3.0),
    "uniform": dist.Uniform(-0.5, 0.25),
    "gamma": dist.Gamma(3.0, 2.0),
    "log-normal": dist.LogNormal(0.0, 0.3),
}


def cores(model: Any, guide: Delta) -> torch.Tensor:
    guide(token_batch())
    return torch.stack([guide.trace.nodes[site.name]["value"] for site in model.sites])


@pytest.mark.parametrize("prior", [dist.Bernoulli(0.5), dist.Poisson(1.0)])
def test_a_discrete_prior_has_no_point_estimate(prior: Any) -> None:
    with refuses(ConfigError, type(prior).__name__, "Normal or HalfNormal"):
        Delta(core_model("global", prior=prior))


@pytest.mark.parametrize("name", list(PRIORS))
@pytest.mark.parametrize("granularity", ["token", "global"])
def test_the_estimate_stays_in_the_support(name: str, granularity: str, tmp_path: Any) -> None:
    prior: Any = PRIORS[name]
    model = core_model(granularity, num_data=5, prior=prior)
    guide = Delta(model)
    start = torch.stack(
        [model.prior.of(s).log_prob(v).isfinite().all() for s, v in zip(model.sites, cores(model, guide), strict=True)]
    )
    assert start.all(), "it starts at a draw from the prior"
    fit(model, guide, [token_batch()], epochs=25, optimizer=lambda p: torch.optim.Adam(p, lr=0.3), progress=False)
    found = cores(model, guide)
    assert constraints.independent(prior.support, 0).check(found).all()
    save(tmp_path / "a", model, guide)
    again, other = load(tmp_path / "a", bert())
    assert torch.equal(cores(again, other), found)


def test_the_maximum_is_that_of_the_density_of_the_core() -> None:
    """With B = 0 the likelihood says nothing: the maximum of Gamma(3, 2) is (3 − 1) / 2, without a Jacobian."""
    model = core_model("global", num_data=5, prior=dist.Gamma(3.0, 2.0))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.zero_().requires_grad_(False)
    guide = Delta(model)
    optimizer, elbo = torch.optim.Adam(guide.parameters(), lr=0.1), ELBO(model, guide)
    for _ in range(300):
        optimizer.zero_grad()
        elbo(token_batch()).backward()
        optimizer.step()
    torch.testing.assert_close(cores(model, guide).squeeze(0), torch.ones(4, 3, 3), atol=1e-3, rtol=0)


def test_all_reals_are_their_own_parameters() -> None:
    model = core_model("global", num_data=5, prior=dist.Laplace(0.0, 1.0))
    guide = Delta(model)
    assert torch.equal(cores(model, guide).reshape(4, 3, 3), next(iter(guide.loc.values())))


def test_a_start_outside_the_support_is_refused() -> None:
    model = StochasticDown(bert(), Bernoulli(), rank=3, num_data=5, prior=dist.HalfNormal(1.0))
    with refuses(ConfigError, "'A.global'", "HalfNormal"):
        Delta(model)
