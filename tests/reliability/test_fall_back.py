"""What γ does to a posterior: the moments of falling back and of widening, and their settings."""

from __future__ import annotations

import json

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Normal

from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError
from bayes_adapters.reliability import Fallback, Reliability, fall_back
from bayes_adapters.sites import Memo
from tests.refusals import refuses
from tests.reliability.parts import D, contexts, fitted, gaussians, rng


@pytest.mark.parametrize("scale", [None, 1.3])
def test_falling_back_has_the_moments_of_the_mixture(scale: float | None) -> None:
    q, p = gaussians()
    gamma = torch.tensor([0.25, 0.6, 0.9])
    found = base_distribution(fall_back(q, p, gamma, scale, Fallback.PRIOR))
    wide = Normal(torch.eye(2), 0.7 if scale is None else scale)
    count, r = 200_000, rng(0)
    own = torch.randn(count, 3, 2, 2, 2, generator=r) * base_distribution(q).scale + base_distribution(q).loc
    other = torch.randn(count, 3, 2, 2, 2, generator=r) * wide.scale + wide.loc
    trusted = torch.rand(count, 3, 1, 1, 1, generator=r) < gamma[:, None, None, None]
    draws = torch.where(trusted, own, other).double()
    torch.testing.assert_close(found.loc.double(), draws.mean(0), rtol=0.0, atol=0.02)
    torch.testing.assert_close(found.variance.double(), draws.var(0), rtol=0.03, atol=0.01)
    b, mu, sigma = 1, float(base_distribution(q).loc[1, 0, 0, 1]), float(base_distribution(q).scale[1, 0, 0, 1])
    beta = 0.7 if scale is None else scale
    second = 0.6 * (sigma**2 + mu**2) + 0.4 * (beta**2 + 0.0)
    assert float(found.variance[b, 0, 0, 1]) == pytest.approx(second - (0.6 * mu) ** 2, rel=1e-5)


@pytest.mark.parametrize("scale", [None, 1.3])
def test_full_trust_is_the_posterior_bit_for_bit_and_none_is_the_prior(scale: float | None) -> None:
    q, p = gaussians()
    full = base_distribution(fall_back(q, p, torch.ones(3), scale, Fallback.PRIOR))
    assert torch.equal(full.loc, base_distribution(q).loc)
    assert torch.equal(full.scale, base_distribution(q).scale)
    for gamma in (0.0, 1e-8):
        none = base_distribution(fall_back(q, p, torch.full((3,), gamma), scale, Fallback.PRIOR))
        torch.testing.assert_close(none.loc, torch.eye(2).expand(3, 2, 2, 2))
        torch.testing.assert_close(none.scale, torch.full((3, 2, 2, 2), 0.7 if scale is None else scale))


@pytest.mark.parametrize("scale", [None, 1.3])
def test_widening_keeps_the_mean_and_has_the_mixtures_variance(scale: float | None) -> None:
    q, p = gaussians()
    gamma = torch.tensor([0.0, 0.6, 1.0])
    found, own = base_distribution(fall_back(q, p, gamma, scale)), base_distribution(q)
    assert torch.equal(found.loc, own.loc)
    wide = torch.full((3, 2, 2, 2), 0.7 if scale is None else scale)
    weights = gamma[:, None, None, None]
    torch.testing.assert_close(found.variance, weights * own.variance + (1 - weights) * wide.square())
    assert torch.equal(found.scale[2], own.scale[2])


def test_falling_back_needs_gaussians() -> None:
    q, p = gaussians()
    for first, second in ((q, dist.Laplace(0.0, 1.0)), (dist.Laplace(q.mean, 1.0), p)):
        with refuses(ConfigError, "Laplace"):
            fall_back(first, second, torch.ones(3))


def test_errors_of_reliability() -> None:
    density = fitted()
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with refuses(ConfigError, "scale", value):
            Reliability(density, scale=value)
    with refuses(ConfigError, "fallback", "'wide'", "'widen'"):
        Reliability(density, "wide")
    whole = Reliability(density, "prior", 0.5).config()
    for broken in ({}, {"density": whole["density"]}, whole | {"fallback_scale": 1.0}, whole | {"density": {}}):
        with refuses(ConfigError, "Reliability.config()", "density (context_dim, components)"):
            Reliability.from_config(broken)


def test_reliability_comes_back_from_its_config_unfitted() -> None:
    config = Reliability(fitted(), "prior", 0.5).config()
    density = {"context_dim": D, "components": 2, "two_sided": True}
    assert config == {"density": density, "fallback": "prior", "scale": 0.5}
    again = Reliability.from_config(json.loads(json.dumps(config)))
    assert again.config() == config
    assert again.density.means.shape == (2, D)
    assert bool(again.density.limit.isinf())


def test_reliability_weighs_like_fall_back_and_leaves_absent_context_alone() -> None:
    q, p = gaussians()
    reliability, frames = Reliability(fitted(), "prior", 1.3), contexts(3, 7, shift=6.0)
    memo = Memo()
    found = base_distribution(reliability(q, p, frames, memo))
    expected = base_distribution(fall_back(q, p, reliability.density(frames), 1.3, Fallback.PRIOR))
    assert torch.equal(found.loc, expected.loc)
    assert torch.equal(found.scale, expected.scale)
    assert not torch.equal(found.scale, base_distribution(q).scale)
    assert reliability(q, p, None, Memo()) is q
    reliability.density.limit.fill_(100.0)
    assert torch.equal(base_distribution(reliability(q, p, frames, memo)).scale, expected.scale), "one γ a pass"
    assert torch.equal(base_distribution(reliability(q, p, frames, Memo())).scale, base_distribution(q).scale)


def test_two_reliabilities_in_one_pass_do_not_share_their_weight() -> None:
    q, p = gaussians()
    frames, memo = contexts(3, 7, shift=6.0), Memo()
    strict, lenient = Reliability(fitted()), Reliability(fitted())
    lenient.density.limit.fill_(100.0)
    strict(q, p, frames, memo)
    assert torch.equal(base_distribution(lenient(q, p, frames, memo)).scale, base_distribution(q).scale)
