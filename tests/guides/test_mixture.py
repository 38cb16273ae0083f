"""Several mean fields at once: torch's density, an unbiased gradient, and two modes where one Gaussian has one."""

from __future__ import annotations

import math
from pathlib import Path

import pyro
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from bayes_adapters import ELBO, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField, Mixture
from bayes_adapters.guides.mixture import EqualMixture
from bayes_adapters.inference.handlers import KeyedDraws
from tests.guides.parts import lives, of_a_and_b, product, product_by_mean_field, trained
from tests.helpers import core_model, token_batch
from tests.refusals import refuses


def mixture(size: int = 3) -> tuple[EqualMixture, MixtureSameFamily]:
    torch.manual_seed(0)
    loc, scale = torch.randn(4, size), torch.rand(4, size) + 0.2
    own = MixtureSameFamily(Categorical(torch.ones(4)), Independent(Normal(loc, scale), 1))
    return EqualMixture(loc, scale), own


def test_density_mean_and_variance_are_those_of_torchs_mixture() -> None:
    q, exact = mixture()
    w = torch.randn(5, 1, 3)
    torch.testing.assert_close(q.expand(torch.Size([5, 1])).log_prob(w), exact.log_prob(w))
    torch.testing.assert_close(q.mean, exact.mean)
    torch.testing.assert_close(q.variance, exact.variance)


def test_draws_have_that_distribution_and_take_the_components_in_turn() -> None:
    q, exact = mixture()
    keyed = KeyedDraws(0, torch.arange(20_000), torch.arange(1))
    with keyed, pyro.plate("samples", 20_000, dim=-2):
        from_seed = pyro.sample("joint", q, infer={"hyper_site": "joint"})[:, 0]
    for w in (q.sample((20_000,)), from_seed):
        torch.testing.assert_close(w.mean(0), exact.mean, rtol=0, atol=0.03)
        torch.testing.assert_close(w.var(0), exact.variance, rtol=0.05, atol=0)
        third = ((w - exact.mean) ** 3).mean(0)
        expected = ((exact.sample((100_000,)) - exact.mean) ** 3).mean(0)
        torch.testing.assert_close(third, expected, rtol=0, atol=0.1)
    apart = EqualMixture(100.0 * torch.arange(4.0)[:, None], torch.ones(4, 1))
    component = (apart.sample((8,)) / 100.0).round()
    assert sorted(component.flatten().tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_gradient_along_draws_is_unbiased() -> None:
    """Against the derivative of ``E_q[log q(w) + w³]`` by quadrature on a grid."""
    loc, scale = torch.tensor([[-0.5], [0.8]]), torch.tensor([[0.4], [0.3]])

    def grid(loc: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        w = torch.linspace(-4.0, 4.0, 8001, dtype=loc.dtype)[:, None]
        density = EqualMixture(loc, scale).log_prob(w)
        return (density.exp() * (density + w[:, 0] ** 3)).sum() * 0.001

    exact = torch.autograd.grad(grid(*(given := [v.double().requires_grad_() for v in (loc, scale)])), given)
    parameters = [v.clone().requires_grad_() for v in (loc, scale)]
    q = EqualMixture(*parameters)
    w = q.rsample((400_000,))
    found = torch.autograd.grad((q.log_prob(w) + w[:, 0] ** 3).mean(), parameters)
    for mine, true in zip(found, exact, strict=True):
        torch.testing.assert_close(mine.double(), true, rtol=0, atol=0.01)


def test_two_modes_of_equal_mass_gain_the_logarithm_of_two() -> None:
    """The posterior of a b = 1 has one mode with a, b > 0 and its mirror image; a mean field has one of them."""
    model, batch, least = product()
    guide = Mixture(model, components=2, init_scale=0.3)
    with torch.no_grad():
        guide.loc.copy_(torch.stack([of_a_and_b(guide, 0.7), of_a_and_b(guide, -0.7)]))
    both, one = trained(model, guide, batch, lr=0.05), product_by_mean_field()
    assert both > least
    assert one - both == pytest.approx(math.log(2) / 8, rel=0.1)


def test_it_fits_predicts_saves_and_loads(tmp_path: Path) -> None:
    model, guide = lives(Mixture, tmp_path / "adapter", components=2)
    assert predict(model, guide, token_batch(), mean_only=True).mean.isfinite().all()


def test_one_component_is_a_mean_field() -> None:
    model = core_model("global")
    guide, other = Mixture(model, components=1), MeanField(model)
    with torch.no_grad():
        guide.loc.copy_(other.loc["core-global"].flatten()[None])
    torch.manual_seed(0)
    found = ELBO(model, guide, num_particles=2000).terms(token_batch(1, 2)).kl
    assert float(found.detach()) == pytest.approx(float(ELBO(model, other).terms(token_batch()).kl.detach()), rel=0.01)


def test_what_is_refused() -> None:
    with refuses(ConfigError, "components", 0):
        Mixture(core_model("global"), components=0)
    with refuses(ConfigError, "init_scale", 0.0):
        Mixture(core_model("global"), init_scale=0.0)
    with refuses(ConfigError, "Mixture", "token"):
        Mixture(core_model("token"))
