"""Posteriors over all weights together: drawn once, counted once, exact where the answer is known."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor
from torch.distributions import kl_divergence

from bayes_adapters import ELBO, Batch, Bernoulli, Gaussian, load, predict, registry, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, LowRank, MeanField
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.models import StochasticDown, StochasticFactors
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.training import fit
from tests.helpers import Linear, bert, core_model, fill_B, token_batch
from tests.refusals import refuses
from tests.third_party import installed

SOURCE = """
from typing import ClassVar
import pyro.distributions as dist
import torch
from bayes_adapters.inference import JointGuide
from torch import nn

class Full(JointGuide):
    '''A Gaussian of full covariance.'''
    name: ClassVar[str] = "full"

    def __init__(self, model, *, scale=0.1):
        super().__init__(model)
        self.scale = scale
        self.loc = nn.Parameter(self.start())
        self.tril = nn.Parameter(torch.eye(self.size) * torch.tensor(scale).log())

    def joint(self):
        tril = self.tril.tril(-1) + self.tril.diagonal().exp().diag()
        return dist.MultivariateNormal(self.loc, scale_tril=tril)

    def config(self):
        return {"scale": self.scale}

class Flow(JointGuide):
    '''An affine map of a Gaussian, then x + x^3 in effect: a skewed posterior without a known mean.'''
    name: ClassVar[str] = "rotated"

    def __init__(self, model):
        super().__init__(model)
        self.loc = nn.Parameter(self.start())
        self.log_scale = nn.Parameter(torch.full((self.size,), -2.0))

    def joint(self):
        base = dist.Normal(torch.zeros(self.size), 1.0).to_event(1)
        return dist.TransformedDistribution(base, [
            dist.transforms.AffineTransform(self.loc, self.log_scale.exp(), event_dim=1),
            dist.transforms.TanhTransform(),
            dist.transforms.AffineTransform(0.0, 2.0),
        ])

    def config(self):
        return {}
"""
ENTRY_POINTS = "[bayes_adapters.guides]\nfull = outside_guides:Full\nrotated = outside_guides:Flow\n"


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Any]:
    with installed(tmp_path / "site", "outside_guides", SOURCE, ENTRY_POINTS):
        yield importlib.import_module("outside_guides")


def factors(**options: Any) -> StochasticFactors:
    """A and B of four layers: eight sites."""
    settings = {"num_data": 20, "prior": dist.Normal(0.0, 0.3), "rank": 2} | options
    return StochasticFactors(bert(), Bernoulli(), **settings)


def spread(guide: LowRank) -> LowRank:
    with torch.no_grad():
        guide.factor.normal_(0.0, 0.1)
        guide.log_scale.normal_(-2.0, 0.3)
    return guide


@pytest.mark.parametrize("particles", [1, 3])
def test_the_kl_is_that_of_torchs_gaussians_once_per_data_set(particles: int) -> None:
    model = factors()
    guide = spread(LowRank(model, covariance_rank=3))
    q = torch.distributions.LowRankMultivariateNormal(guide.loc, guide.factor, (2 * guide.log_scale).exp())
    prior = torch.distributions.MultivariateNormal(torch.zeros(guide.size), 0.09 * torch.eye(guide.size))
    full = torch.distributions.MultivariateNormal(guide.loc, q.covariance_matrix)
    found = ELBO(model, guide, num_particles=particles).terms(token_batch()).kl
    torch.testing.assert_close(found, kl_divergence(full, prior) / 20, rtol=1e-4, atol=1e-5)
    half = ELBO(model, guide, kl_weight=0.5, num_particles=particles).terms(token_batch()).kl
    torch.testing.assert_close(half, kl_divergence(full, prior) / 40, rtol=1e-4, atol=1e-5)


def test_without_factors_it_is_mean_field() -> None:
    model = factors()
    guide, other = LowRank(model, init_scale=0.2), MeanField(model, init_scale=0.2)
    with torch.no_grad():
        guide.factor.zero_()
        for site in model.sites:
            guide.loc[guide.layout[site.name]] = other.loc[site.name.replace(".", "-")].flatten()
    found, expected = (ELBO(model, g).terms(token_batch()).kl for g in (guide, other))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_prior_without_closed_form_is_scored_at_the_draw() -> None:
    model = factors(prior=dist.Laplace(0.0, 0.3))
    guide = spread(LowRank(model, covariance_rank=2))
    torch.manual_seed(0)
    draws = ELBO(model, guide, num_particles=3000).terms(token_batch(1, 2)).kl
    q = guide.joint()
    w = q.sample((20_000,))
    exact = (q.log_prob(w) - torch.distributions.Laplace(0.0, 0.3).log_prob(w).sum(-1)).mean() / 20
    assert draws.item() == pytest.approx(exact.item(), rel=0.02)


@pytest.mark.parametrize("stock", [Trace_ELBO, TraceMeanField_ELBO])
def test_pyros_own_elbos_count_log_q_once(stock: Any) -> None:
    model = factors(rank=1)
    guide, batch = spread(LowRank(model)), token_batch(2, 3)
    torch.manual_seed(0)
    theirs = stock(num_particles=600, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, batch)
    ours = ELBO(model, guide, num_particles=600)(batch).item()
    assert theirs / 20 == pytest.approx(ours, rel=0.03)


def test_one_draw_is_cut_into_the_sites_and_correlates_across_layers() -> None:
    model = factors()
    guide = LowRank(model, covariance_rank=1, init_scale=1e-3)
    with torch.no_grad():
        guide.factor.fill_(1.0)  # all weights move together
    with torch.no_grad(), pyro.plate("samples", 50, dim=-2):
        guide(token_batch())
    values = [guide.trace.nodes[s.name]["value"].reshape(50, -1) for s in model.sites]
    whole = torch.cat(values, 1) - guide.loc
    assert guide.trace.nodes["joint"]["value"].shape == (50, 1, guide.size)
    torch.testing.assert_close(torch.cat(values, 1), guide.trace.nodes["joint"]["value"][:, 0])
    correlation = torch.corrcoef(whole.T)
    assert correlation.min() > 0.99


def regression(seed: int = 0) -> tuple[Any, Batch, Tensor, Tensor]:
    """Bayesian linear regression: outputs are linear in a 2 × 2 core, and the posterior is a Gaussian of full rank."""
    torch.manual_seed(seed)
    batch = Batch({"x": torch.randn(30, 1, 4)}, targets=torch.randn(30))
    options: dict[str, Any] = {"targets": ["query"], "rank": 2, "prior": dist.Normal(0.0, 1.0), "num_data": 30}
    model = core_model("global", backbone=Linear(), likelihood=Gaussian(-0.5), **options)
    model.requires_grad_(False)

    def outputs(core: Tensor) -> Tensor:
        return pyro.poutine.condition(model, {"core.global": core.reshape(1, 2, 2)})(batch)[:, 0]

    with torch.no_grad():
        zero = outputs(torch.zeros(4))
        design = torch.stack([outputs(row) - zero for row in torch.eye(4)], 1).double()
        noise = torch.tensor(-1.0).exp().double()
        precision = torch.eye(4).double() + design.T @ design / noise
        mean = torch.linalg.solve(precision, design.T @ (batch.targets - zero).double() / noise)
    return model, batch, mean, torch.linalg.inv(precision)


@pytest.mark.parametrize("kind", ["low_rank", "full"])
def test_the_optimum_is_the_known_posterior_of_a_linear_regression(kind: str, outside: Any) -> None:
    """Training finds the exact mean and covariance, correlations included."""
    model, batch, mean, covariance = regression()
    guide = LowRank(model, covariance_rank=4) if kind == "low_rank" else outside.Full(model)
    elbo = ELBO(model, guide, num_particles=128)
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 500)
    torch.manual_seed(1)
    for _ in range(500):
        optimiser.zero_grad()
        elbo(batch).backward()
        optimiser.step()
        schedule.step()
    q = guide.joint()
    deviation = covariance.diagonal().sqrt()
    assert ((q.mean.double() - mean) / deviation).abs().max() < 0.1
    torch.testing.assert_close(
        q.covariance_matrix.double() / deviation / deviation[:, None],
        covariance / deviation / deviation[:, None],
        rtol=0,
        atol=0.1,
    )
    off = covariance / deviation / deviation[:, None]
    assert off.fill_diagonal_(0).abs().max() > 0.2, "a case without correlations would show nothing"


@pytest.mark.parametrize("kind", ["low_rank", "full", "flow"])
def test_predictions_are_repeatable_and_do_not_depend_on_the_cut(kind: str, outside: Any) -> None:
    model, batch = factors(prior=dist.StudentT(5.0, 0.0, 0.3)), token_batch()
    guide = registry.find("guide", kind)(model)
    state = torch.get_rng_state()
    found = predict(model, guide, batch, num_samples=6, return_samples=True)
    assert torch.equal(torch.get_rng_state(), state)
    assert found.samples.std(0).max() > 0
    cut = predict(model, guide, [batch[:2], batch[2:]], num_samples=6, chunk_size=2, return_samples=True)
    torch.testing.assert_close(cut.samples, found.samples, rtol=1e-5, atol=1e-6)
    more = predict(model, guide, batch, num_samples=9, return_samples=True)
    torch.testing.assert_close(more.samples[:6], found.samples, rtol=1e-5, atol=1e-6)
    if kind == "flow":
        with pytest.raises(ConfigError):
            predict(model, guide, batch, mean_only=True)
        return
    lora = to_lora(model, guide, bert())
    torch.testing.assert_close(
        predict(lora, Delta(lora), batch).mean,
        predict(model, guide, batch, mean_only=True).mean,
        rtol=1e-4,
        atol=1e-5,
    )


def test_keyed_draws_have_the_joint_distribution() -> None:
    model = factors(rank=1, targets=["0.attention.self.query"])
    guide = spread(LowRank(model, covariance_rank=2))
    with torch.no_grad():
        guide.factor.mul_(3)
    with torch.no_grad(), KeyedDraws(0, torch.arange(20_000), torch.arange(1)), pyro.plate("samples", 20_000, dim=-2):
        w = pyro.sample("joint", guide.joint(), infer={"hyper_site": "joint"})[:, 0]
    covariance = guide.joint().covariance_matrix.detach()
    torch.testing.assert_close(torch.cov(w.T), covariance, rtol=0, atol=0.03 * float(covariance.max()))
    torch.testing.assert_close(w.mean(0), guide.loc.detach(), rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", ["low_rank", "full", "flow"])
def test_fit_save_and_load(kind: str, outside: Any, tmp_path: Path) -> None:
    model, batch = core_model("global", num_data=5), token_batch()
    guide = registry.find("guide", kind)(model)
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    fit(model, guide, [batch], epochs=2, progress=False)
    assert all(not torch.equal(p, before[n]) for n, p in guide.named_parameters())
    save(tmp_path / "adapter", model, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    assert type(guide_again) is type(guide)
    assert guide_again.config() == guide.config()
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)


def test_flipout_stays_off_so_that_examples_share_the_draw() -> None:
    """With flipout each of five copies of an example would have its own signs."""
    model = StochasticDown(bert(), Bernoulli(), num_data=5, rank=2)
    fill_B(model)
    alike = token_batch()[torch.tensor([1, 1, 1, 1, 1])]
    outputs = []
    for guide in (LowRank(model, init_scale=1.0), MeanField(model, init_scale=1.0)):
        with torch.no_grad():
            model.train()
            guide(alike)
        outputs.append(guide.trace.nodes["obs"]["fn"].logits)
    assert outputs[0].std() < 1e-5
    assert outputs[1].std() > 1e-3


def test_what_it_does_not_serve() -> None:
    with refuses(ConfigError, "LowRank", "token"):
        LowRank(core_model("token"))
    for options in ({"covariance_rank": 0}, {"init_scale": 0.0}, {"init_scale": float("nan")}):
        with refuses(ConfigError, next(iter(options))):
            LowRank(core_model("global"), **options)  # type: ignore[arg-type]

    class Short(LowRank):
        def joint(self) -> Any:
            return dist.Normal(self.loc[1:], 1.0).to_event(1)

    model = core_model("global")
    with refuses(ConfigError, "(36,)"):
        Short(model)(token_batch())


def test_hyper_parameters_beside_joint_weights() -> None:
    def prior(name: str, shape: tuple[int, ...]) -> Any:
        return dist.Normal(0.0, pyro.sample("tau", dist.LogNormal(0.0, 1.0))).expand(shape)

    model, batch = core_model("global", prior=prior), token_batch()
    guide = LowRank(model)
    for particles in (1, 2):
        elbo = ELBO(model, guide, num_particles=particles)
        elbo(batch).backward()
        assert guide.hyper.loc["tau"].grad.abs() > 0
    assert predict(model, guide, batch, num_samples=3).total.isfinite().all()
