"""Priors from outside the tree: one file and an entry point; they train, predict, are saved, loaded and exported."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import HalfCauchy, LogNormal, Normal, kl_divergence

from bayes_adapters import ELBO, KLWeight, load, predict, registry, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.models import AdapterDropout
from bayes_adapters.priors import Prior, from_json
from bayes_adapters.sites import Granularity, Part, Site
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses
from tests.third_party import installed

SOURCE = """
from typing import ClassVar
import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

class MatrixNormal(dist.TorchDistribution):
    '''E ~ MN(0, U, V): vec of a row-correlated matrix; U = scale^2 (I + share 11^T), V = I.'''
    name: ClassVar[str] = "matrix_normal"
    arg_constraints = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, rank, scale=0.2, share=0.5):
        self.rank, self.scale, self.share = rank, scale, share
        covariance = scale**2 * (torch.eye(rank) + share)
        self.columns = dist.MultivariateNormal(torch.zeros(rank), covariance)
        super().__init__((), (rank, rank), validate_args=False)

    @property
    def mean(self):
        return torch.zeros(self.rank, self.rank)

    def rsample(self, sample_shape=torch.Size()):
        return self.columns.rsample(torch.Size(sample_shape) + (self.rank,)).mT

    def log_prob(self, value):
        return self.columns.log_prob(value.mT).sum(-1)

    def config(self):
        return {"rank": self.rank, "scale": self.scale, "share": self.share}

class Horseshoe:
    '''E_ij ~ N(0, (tau lambda)^2), tau shared by all sites, lambda one per site.'''
    name: ClassVar[str] = "horseshoe"

    def __init__(self, scale=0.1):
        self.scale = scale

    def __call__(self, name, shape):
        tau = pyro.sample("tau", dist.HalfCauchy(self.scale))
        local = pyro.sample(f"lambda.{name}", dist.HalfCauchy(1.0))
        return dist.Normal(0.0, tau * local).expand(shape)

    def config(self):
        return {"scale": self.scale}

def random_scale(name, shape):
    scale = pyro.sample("scale", dist.LogNormal(-1.0, 0.5))
    return dist.Normal(0.0, scale).expand(shape)
"""
ENTRY_POINTS = """
[bayes_adapters.priors]
matrix_normal = outside_priors:MatrixNormal
horseshoe = outside_priors:Horseshoe
random_scale = outside_priors:random_scale
"""


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Any]:
    with installed(tmp_path / "site", "outside_priors", SOURCE, ENTRY_POINTS):
        yield importlib.import_module("outside_priors")


def test_an_own_class_by_entry_point(outside: Any, tmp_path: Path) -> None:
    assert {"matrix_normal", "horseshoe", "random_scale"} <= set(registry.names("prior"))
    prior = outside.MatrixNormal(3, scale=0.3)
    model = core_model("global", prior=prior, num_data=5)
    guide, batch = MeanField(model), token_batch()
    fit(model, guide, [batch], epochs=1, progress=False)
    core = torch.randn(3, 3)
    whole = torch.distributions.MultivariateNormal(
        torch.zeros(9), torch.kron(0.09 * (torch.eye(3) + 0.5), torch.eye(3))
    )
    torch.testing.assert_close(
        model.prior.of(model.sites[0]).log_prob(core), whole.log_prob(core.flatten()).expand(4), rtol=1e-4, atol=1e-4
    )
    save(tmp_path / "adapter", model, guide)
    entry = json.loads((tmp_path / "adapter" / "adapter.json").read_text())["prior"]["core.global"]
    assert entry["family"] == "matrix_normal"
    assert entry["parameters"] == {"rank": 3, "scale": 0.3, "share": 0.5}
    again, guide_again = load(tmp_path / "adapter", bert())
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)
    torch.testing.assert_close(
        again.prior.of(again.sites[0]).log_prob(core), model.prior.of(model.sites[0]).log_prob(core)
    )


@pytest.mark.parametrize("granularity", ["token", "global"])
@pytest.mark.parametrize("form", ["horseshoe", "random_scale"])
def test_a_hierarchical_prior_by_entry_point(form: str, granularity: str, outside: Any, tmp_path: Path) -> None:
    prior = outside.Horseshoe(0.2) if form == "horseshoe" else outside.random_scale
    model = core_model(granularity, prior=prior, num_data=5)
    guide, batch = MeanField(model), token_batch()
    names = [h.name for h in model.prior.hyper_sites]
    sites = [s.name for s in model.sites]
    assert names == (["tau", *(f"lambda.{s}" for s in sites)] if form == "horseshoe" else ["scale"])
    before = {name: p.detach().clone() for name, p in guide.named_parameters() if "hyper" in name}
    assert len(before) == 2 * len(names)
    fit(model, guide, [batch], epochs=2, num_particles=2, progress=False)
    assert all(not torch.equal(p, before[n]) for n, p in guide.named_parameters() if n in before)
    found = predict(model, guide, batch, num_samples=3)
    assert torch.equal(predict(model, guide, batch, num_samples=3, chunk_size=1).mean, found.mean) or torch.allclose(
        predict(model, guide, batch, num_samples=3, chunk_size=1).mean, found.mean, atol=1e-6
    )
    save(tmp_path / "adapter", model, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    assert torch.equal(predict(again, guide_again, batch, num_samples=3).mean, found.mean)
    assert [h.name for h in again.prior.hyper_sites] == names
    if granularity == "global":
        lora = to_lora(model, guide, bert())
        torch.testing.assert_close(
            predict(lora, Delta(lora), batch).mean, predict(model, guide, batch, mean_only=True).mean, atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("particles", [1, 3])
def test_hyper_parameters_count_once_per_data_set(outside: Any, particles: int) -> None:
    """KL(q(τ) ‖ p(τ)) / N + E_τ KL(q(E) ‖ N(0, τ²)) / N; q(τ) and p(τ) are both log-normal."""
    model = core_model("global", prior=outside.random_scale, num_data=7)
    guide, batch = MeanField(model, init_scale=0.15), token_batch()
    with torch.no_grad():
        guide.hyper.loc["scale"].fill_(-0.5)
        guide.hyper.log_scale["scale"].fill_(-20.0)  # τ = exp(-0.5): the average over τ is its value there
    found = ELBO(model, guide, num_particles=particles).terms(batch).kl
    tau = torch.tensor(-0.5).exp()
    q = LogNormal(torch.tensor(-0.5), torch.tensor(-20.0).exp())
    exact = kl_divergence(q, LogNormal(-1.0, 0.5))
    exact = exact + kl_divergence(Normal(guide.loc["core-global"], 0.15), Normal(0.0, tau)).sum()
    torch.testing.assert_close(found, exact / 7, rtol=1e-4, atol=1e-5)
    halved = ELBO(model, guide, kl_weight=0.5, num_particles=particles).terms(batch).kl
    torch.testing.assert_close(halved, exact / 14, rtol=1e-4, atol=1e-5)
    with KLWeight(0.5):
        stock = pyro.infer.TraceMeanField_ELBO().differentiable_loss(model, guide, batch)
    terms = ELBO(model, guide, kl_weight=0.5).terms(batch)
    assert abs(stock.item() / 7 - terms.loss.item()) < 0.2 * abs(terms.loss.item())


def test_the_density_of_a_hierarchical_model(outside: Any) -> None:
    model, batch = core_model("global", prior=outside.Horseshoe(0.2), num_data=50), token_batch()
    core, tau, local = torch.randn(4, 3, 3) * 0.1, torch.tensor(0.3), torch.tensor(0.7)
    data = {"core.global": core, "tau": tau, "lambda.core.global": local}
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data)).get_trace(batch)
    expected = HalfCauchy(0.2).log_prob(tau) + HalfCauchy(1.0).log_prob(local) + Normal(0.0, 0.21).log_prob(core).sum()
    expected = expected + 10 * trace.nodes["obs"]["fn"].log_prob(batch.targets).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


def test_the_guide_finds_the_posterior_of_a_scale(outside: Any) -> None:
    """36 cores of deviation 0.5 whose posterior is held there: q(τ) of the scale τ that drew them must be near 0.5."""
    model = core_model("global", prior=outside.random_scale, num_data=1)
    guide, batch = MeanField(model, init_scale=1e-3), token_batch(1, 2)
    torch.manual_seed(0)
    cores = torch.randn(4, 3, 3)
    with torch.no_grad():
        guide.loc["core-global"].copy_(0.5 * cores / cores.square().mean().sqrt())
    guide.requires_grad_(False)
    guide.hyper.requires_grad_(True)
    elbo = ELBO(model, guide, num_particles=32)
    optimiser = torch.optim.Adam(guide.hyper.parameters(), lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        elbo(batch).backward()
        optimiser.step()
    grid = torch.linspace(-2, 1, 3001)  # log τ, by quadrature
    log_joint = Normal(-1.0, 0.5).log_prob(grid) - 36 * grid - 36 * 0.25 / (2 * (2 * grid).exp())
    weight = log_joint.softmax(0)
    mean = (weight * grid).sum()
    deviation = (weight * (grid - mean).square()).sum().sqrt()
    assert guide.hyper.loc["scale"].item() == pytest.approx(mean.item(), abs=0.05)
    assert guide.hyper.log_scale["scale"].exp().item() == pytest.approx(deviation.item(), rel=0.25)


def test_predictive_draws_of_hyper_parameters_are_shared_by_sites(outside: Any) -> None:
    model = core_model("token", prior=outside.Horseshoe(0.2), num_data=5)
    batch = token_batch().without_targets()
    trace = pyro.poutine.trace(model).get_trace(batch)
    assert sum(name == "tau" for name in trace.nodes) == 1
    with pyro.plate("samples", 4, dim=-2):
        vectorised = pyro.poutine.trace(model).get_trace(batch)
    tau = vectorised.nodes["tau"]["value"]
    local = vectorised.nodes[f"lambda.{model.sites[0].name}"]["value"]
    fn = vectorised.nodes[model.sites[0].name]["fn"]
    assert tau.shape == (4, 1)
    value = vectorised.nodes[model.sites[0].name]["value"]
    real = batch.inputs["attention_mask"].bool()
    by_hand = Normal(0.0, (tau * local)[..., None, None, None]).log_prob(value).sum((-1, -2))
    torch.testing.assert_close(fn.log_prob(value), (by_hand * real).sum(-1), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "build",
    [
        lambda name, shape: dist.Normal(0.0, pyro.sample("k", dist.Poisson(1.0)) + 1).expand(shape),
        lambda name, shape: dist.Normal(0.0, pyro.sample("k", dist.HalfCauchy(torch.ones(3)))).expand(shape),
        lambda name, shape: dist.Normal(pyro.sample("k", dist.Normal(0, 1), obs=torch.tensor(0.1)), 1.0),
    ],
    ids=["discrete", "batch", "observed"],
)
def test_hyper_parameters_that_cannot_be(build: Any) -> None:
    with refuses(ConfigError, "core.global"):
        core_model("global", prior=build)


def test_guides_and_models_that_cannot_take_hyper_parameters(outside: Any) -> None:
    model = core_model("global", prior=outside.random_scale)
    with refuses(ConfigError, "'scale'"):
        Delta(model)
    with refuses(ConfigError, "num_data"):
        core_model("token", prior=outside.random_scale, num_data=None)
    assert Contextual(core_model("token", prior=outside.random_scale)).hyper is not None
    assert AdapterDropout.structure


def test_what_cannot_be_written_is_refused_by_save_only(tmp_path: Path, outside: Any) -> None:
    class Unnamed(dist.Normal):
        pass

    wrong = [Unnamed(0.0, 0.2), lambda name, shape: outside.random_scale(name, shape)]
    for prior in wrong:
        model = core_model("global", prior=prior, num_data=5)
        guide = MeanField(model)
        fit(model, guide, [token_batch()], epochs=1, progress=False)
        predict(model, guide, token_batch(), num_samples=2)
        with refuses(ConfigError, "core.global"):
            save(tmp_path / "x", model, guide)
        assert not (tmp_path / "x" / "adapter.json").exists()
    one, other = (Prior(Unnamed(0.0, s), core_model().sites).to_json() for s in (0.2, 0.3))
    assert one != other


@pytest.mark.parametrize("family", ["enable_validation", "Nothing", "kl_divergence", "Distribution.mro"])
def test_only_distributions_are_looked_up(family: str) -> None:
    """A file that names a function of pyro.distributions must not call it."""
    before = torch.distributions.Distribution._validate_args
    entry = {"family": family, "parameters": {"is_validate": 0.0}}
    with refuses(ConfigError, repr(family)):
        from_json({"core": entry})
    nested = {"family": "MaskedDistribution", "parameters": {"base_dist": entry, "mask": {"number": True}}}
    with pytest.raises(ConfigError):
        from_json({"core": nested})
    transform = {"transform": "identity_transform", "parameters": {}}
    with pytest.raises(ConfigError):
        from_json({"core": {"family": "TransformedDistribution", "parameters": {"transforms": {"list": [transform]}}}})
    assert torch.distributions.Distribution._validate_args is before


def test_an_altered_family_in_a_file_changes_nothing(tmp_path: Path) -> None:
    model = core_model()
    save(tmp_path, model, MeanField(model))
    path = tmp_path / "adapter.json"
    path.write_text(path.read_text().replace('"family": "Normal"', '"family": "enable_validation"'))
    before = torch.distributions.Distribution._validate_args
    with pytest.raises(AdapterFileError):
        load(tmp_path, bert())
    assert torch.distributions.Distribution._validate_args is before


def test_an_expanded_prior_is_not_changed_by_use() -> None:
    """Pyro's ExpandedDistribution.expand works in place."""
    site = Site("core.q", Part.CORE, ("q",), (3, 3), Granularity.TOKEN)
    prior = Prior(dist.ExpandedDistribution(dist.Normal(0.0, 0.2), torch.Size((3, 3))), [site])
    first = prior.of(site)
    first.expand(torch.Size((5, 7)))
    assert prior.of(site).batch_shape == ()
    assert prior.of(site).event_shape == (3, 3)
