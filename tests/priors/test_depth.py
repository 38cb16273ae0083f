"""A Gaussian process over depth against torch's multivariate normal, and the independent prior as its limit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gpytorch
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from bayes_adapters import ELBO, Categorical, load, predict, registry, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, LowRank, MeanField
from bayes_adapters.kernels import Kernel
from bayes_adapters.models import StochasticCore, StochasticDown
from bayes_adapters.priors import DepthProcess, identity_normal, zero_normal
from bayes_adapters.priors.depth import CorrelatedLayers
from bayes_adapters.training import fit
from tests.helpers import bert, fill_B, token_batch
from tests.refusals import refuses

LAYERS = 4
OPTIONS: dict[str, Any] = {"rank": 2, "granularity": "global", "num_data": 20}
BATCH = token_batch(targets=torch.tensor([0, 1, 2, 1, 0]))


def model_under(prior: Any, **options: Any) -> StochasticCore:
    return fill_B(StochasticCore(bert(LAYERS), Categorical(3), prior=prior, **OPTIONS | options))


def joint(model: StochasticCore, covariance: Tensor, scale: float) -> MultivariateNormal:
    """N(0, K ⊗ σ² I) over the entries of a site, layers outermost, as torch has it."""
    (site,) = model.sites
    entries = math.prod(site.event)
    whole = scale**2 * torch.kron(covariance, torch.eye(entries))
    return MultivariateNormal(torch.zeros(len(whole)), whole)


def covariance_by_hand(kernel: str, lengthscale: float) -> Tensor:
    """Query and value of four layers: the same kernel for each, nothing between them."""
    steps = torch.arange(LAYERS)[:, None].double()
    module = gpytorch.kernels.RBFKernel() if kernel == "rbf" else gpytorch.kernels.MaternKernel(int(kernel[-2]) / 2)
    module.lengthscale = lengthscale
    return torch.kron(module.double()(steps).to_dense().detach(), torch.eye(2)).float()


@pytest.mark.parametrize("kernel", list(Kernel))
def test_density_and_kl_are_those_of_the_whole_covariance(kernel: str) -> None:
    """Oracles: gpytorch's kernels for K, and torch's multivariate normal for density and KL."""
    prior = DepthProcess(1.3, 0.4, kernel=kernel)
    model = model_under(prior)
    (site,) = model.sites
    assert [path.rpartition(".")[2] for path in site.layers] == ["query", "value"] * LAYERS
    expected = joint(model, covariance_by_hand(kernel, 1.3), 0.4)
    found = model.prior.of(site)
    values = 0.3 * torch.randn(5, *site.shape)
    torch.testing.assert_close(found.log_prob(values), expected.log_prob(values.flatten(1)), rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(found.variance.flatten(), expected.variance, rtol=1e-4, atol=1e-5)
    guide = MeanField(model, init_scale=0.1)
    q = torch.distributions.Normal(guide.loc["core-global"].flatten(), guide.rho["core-global"].exp().flatten())
    q_whole = MultivariateNormal(q.mean, torch.diag(q.variance))
    kl = ELBO(model, guide, kl_weight=0.5).terms(BATCH).kl
    torch.testing.assert_close(kl, 0.5 * kl_divergence(q_whole, expected) / 20, rtol=1e-3, atol=1e-3)


def test_draws_have_the_covariance() -> None:
    factor = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]]))
    fn = CorrelatedLayers(torch.ones(2, 3, 1), factor, torch.tensor(0.5)).expand((4000,))
    draws = fn.rsample()
    assert draws.shape == fn.shape() == (4000, 2, 3, 1)
    assert (draws.mean(0) - 1).abs().max() < 4 * 0.5 / 4000**0.5
    found = torch.cov(draws[:, :, 1, 0].T)
    torch.testing.assert_close(found, 0.25 * factor @ factor.T, rtol=0.0, atol=0.02)


@pytest.mark.parametrize("kernel", list(Kernel))
@pytest.mark.parametrize("guide", [MeanField, Delta, LowRank])
def test_without_a_length_it_is_the_independent_prior(kernel: str, guide: type) -> None:
    terms = []
    for prior in (zero_normal(0.3), DepthProcess(0.0, 0.3, kernel=kernel)):
        model = model_under(prior)
        torch.manual_seed(1)
        posterior = guide(model)
        with torch.no_grad():
            for parameter in posterior.parameters():
                parameter.copy_(0.1 * torch.randn(parameter.shape))
        torch.manual_seed(2)
        terms.append(ELBO(model, posterior).terms(BATCH))
    if guide is LowRank:  # its KL is closed under independent entries only; else it is scored at the draw
        torch.testing.assert_close(terms[0].nll, terms[1].nll)
        return
    torch.testing.assert_close(terms[0].kl, terms[1].kl, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(terms[0].loss, terms[1].loss, rtol=1e-6, atol=1e-6)
    assert torch.equal(DepthProcess(0.0, 0.3, kernel=kernel)(model.sites[0]).scale_tril, torch.eye(2 * LAYERS))


def test_a_mean_of_one_is_that_of_the_identity_prior() -> None:
    (site,) = model_under(identity_normal(2, 0.3)).sites
    priors = (identity_normal(2, 0.3), DepthProcess(0.0, 0.3, identity=True))
    one, other = (model_under(prior).prior.of(site) for prior in priors)
    value = torch.randn(site.shape)
    assert torch.equal(one.mean.expand(site.shape), other.mean)
    torch.testing.assert_close(one.log_prob(value).sum(), other.log_prob(value))


def test_the_limit_of_many_draws_is_the_closed_kl() -> None:
    """A guide without a closed KL scores draws; their mean is the KL."""
    model = model_under(DepthProcess(2.0))
    guide = LowRank(model)
    with torch.no_grad():
        kls = torch.stack([ELBO(model, guide, num_particles=50).terms(BATCH).kl for _ in range(6)])
        q = guide.joint()
        p = joint(model, covariance_by_hand("matern12", 2.0), 0.2)
        expected = kl_divergence(MultivariateNormal(q.mean, q.covariance_matrix), p) / 20
    assert (kls.mean() - expected).abs() < 5 * kls.std() / 6**0.5


def test_the_length_scale_is_learned() -> None:
    """Weights that are alike in all layers make it longer, unlike ones shorter."""
    lengths = []
    for alike in (True, False):
        model = model_under(DepthProcess(1.0, 0.5, spread=1.0))
        guide = MeanField(model, init_scale=0.01)
        (key,) = guide.hyper.sites
        (site,) = model.sites
        with torch.no_grad():
            weights = torch.randn(1, 2, 2, 2).repeat(LAYERS, 1, 1, 1) if alike else torch.randn(LAYERS, 2, 2, 2)
            guide.loc["core-global"].copy_(0.5 * weights.reshape(site.shape))
        guide.loc.requires_grad_(False)
        guide.rho.requires_grad_(False)
        model.requires_grad_(False)
        model.num_data = 1
        optimiser = torch.optim.Adam([p for p in guide.parameters() if p.requires_grad], lr=0.1)
        for _ in range(40):
            optimiser.zero_grad()
            ELBO(model, guide, num_particles=2).terms(BATCH).kl.backward()
            optimiser.step()
        lengths.append(guide.hyper.loc[key.replace(".", "-")].exp().item())
    assert lengths[0] > 1.5
    assert lengths[1] < lengths[0] / 2


@pytest.mark.parametrize(
    ("guide", "spread"), [(MeanField, None), (MeanField, 0.5), (LowRank, None), (LowRank, 0.5), (Delta, None)]
)
def test_it_trains_predicts_and_is_saved(guide: type, spread: float | None, tmp_path: Path) -> None:
    model = model_under(DepthProcess(2.0, spread=spread))
    posterior = guide(model)
    fit(model, posterior, BATCH, epochs=2, num_particles=2, progress=False)
    save(tmp_path, model, posterior)
    pairs = ((model, posterior), load(tmp_path, bert(LAYERS)))
    found, expected = (predict(*pair, BATCH, num_samples=4).mean for pair in pairs)
    assert torch.equal(found, expected)
    density, other = (one.prior.of(one.sites[0]).log_prob(torch.ones(one.sites[0].shape)) for one, _ in pairs)
    assert torch.equal(density, other)
    assert pairs[1][0].prior.to_json(registry.find) == model.prior.to_json(registry.find)


def test_pyros_own_tools() -> None:
    model = model_under(DepthProcess(2.0, spread=0.5))
    with pyro.settings.context(module_local_params=True):
        assert math.isfinite(SVI(model, MeanField(model), Adam({"lr": 1e-3}), Trace_ELBO()).step(BATCH))
    trace = pyro.poutine.trace(model).get_trace(BATCH)
    assert trace.nodes["core.global"]["fn"].event_shape == model.sites[0].shape
    assert trace.log_prob_sum().isfinite()


def test_layers_of_other_parts_and_shapes() -> None:
    options: dict[str, Any] = {"num_data": 20, "targets": ["query", "output.dense"]}
    model = StochasticDown(bert(LAYERS), Categorical(3), prior=DepthProcess(3.0), **options)
    assert all(isinstance(model.prior.of(site), CorrelatedLayers) for site in model.sites)
    assert ELBO(model, MeanField(model))(BATCH).isfinite()


def test_mistakes() -> None:
    with refuses(ConfigError, "core.", "token", "granularity='global'"):
        StochasticCore(bert(), Categorical(3), prior=DepthProcess(), rank=2, granularity="token")
    with refuses(ConfigError, "grouped=False"):
        StochasticCore(bert(), Categorical(3), prior=DepthProcess(), grouped=False, **OPTIONS)
    with refuses(ConfigError, "identity=True", (8, 16)):
        StochasticDown(bert(), Categorical(3), prior=DepthProcess(identity=True), num_data=9)
    with refuses(ConfigError, "lengthscale", -1.0):
        DepthProcess(-1.0)
    with refuses(ConfigError, "lengthscale=0", "learned"):
        DepthProcess(0.0, spread=1.0)
    with refuses(ConfigError, "scale", math.nan):
        DepthProcess(scale=math.nan)
    with refuses(ConfigError, "'rbf2'", "rbf"):
        DepthProcess(kernel="rbf2")
    model = model_under(DepthProcess(1.0, spread=1.0))
    with refuses(ConfigError, "Delta", "depth.log_ratio", "MeanField"):
        Delta(model)
    with refuses(ConfigError, "Contextual"):
        Contextual(model)
    (site,) = model.sites
    with refuses(ConfigError, "CorrelatedLayers", site.name):
        model.prior.require_elementwise(site)
    with pytest.raises(NotImplementedError):
        kl_divergence(dist.Laplace(torch.zeros(site.shape), 1.0).to_event(3), model.prior.of(site))
