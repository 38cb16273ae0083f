"""Stored posteriors are those of their targets, and say what approximations of them must show."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import FullGaussian, MeanField, StoredDraws
from bayes_adapters.models import StochasticCore
from bayes_adapters.testing import TARGETS, Reference, closeness, energy_distance, recreate, reference, targets
from bayes_adapters.testing.entries import log_density
from bayes_adapters.testing.linear_gaussian import _affine
from bayes_adapters.training import fit
from tests.instrument import unchecked
from tests.refusals import refuses

ERRORS = 4.5
"""Of the mean and of an sd, in standard errors of the effective number of draws."""


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_stored_is_of_the_target_and_of_chains_that_mixed(name: str) -> None:
    found = reference(name)
    model, batch = found.make_model(), found.make_batch()
    right = [log_density(model, batch, u) for u in found.draws[: len(found.log_density)]]
    torch.testing.assert_close(found.log_density, torch.tensor(right).double(), rtol=0, atol=2e-3)
    sampler = found.sampler
    slow = name in ("logistic-core", "scale-funnel")  # and their errors say so
    assert max(sampler["r_hat"]) < (1.05 if slow else 1.02)
    assert min(sampler["effective_sample_size"]) > (150 if slow else 300)
    assert float((found.error / found.sd).max()) < (0.08 if slow else 0.06)
    assert sampler["divergences"] <= 0.01 * sampler["chains"] * sampler["draws"]
    assert found.log_evidence_error < 0.1
    assert len(found.entries) == len(found.mean) == found.draws.shape[1]
    middle = found.quantiles[len(found.levels) // 2]
    assert float(((middle - found.mean) / found.sd).abs().max()) < 1.0


def linear(name: str) -> tuple[Tensor, Tensor, Tensor, float]:
    """f₀ and J of the outputs at the examples, y, and the noise."""
    found = reference(name)
    model, batch = found.make_model(), found.make_batch()
    start, slopes = _affine(model, batch)
    noise = math.exp(float(model.likelihood.get_parameter("log_scale")))
    assert isinstance(batch.targets, Tensor)
    return start, slopes, batch.targets.double(), noise


def conjugate(name: str, scale: float = 1.0) -> tuple[Tensor, Tensor, float]:
    """Mean, covariance and log evidence under the prior N(0, scale²), by hand."""
    start, slopes, y, noise = linear(name)
    eye = torch.eye(slopes.shape[1]).double()
    covariance = torch.linalg.inv(eye / scale**2 + slopes.T @ slopes / noise**2)
    mean = covariance @ slopes.T @ (y - start) / noise**2
    wide = noise**2 * torch.eye(len(y)).double() + scale**2 * slopes @ slopes.T
    return mean, covariance, float(MultivariateNormal(start, wide).log_prob(y))


def agrees(found: Reference, mean: Tensor, covariance: Tensor, evidence: float) -> None:
    """Moments and evidence are the exact ones, as far as so many draws can say."""
    sd = covariance.diagonal().sqrt()
    effective = torch.tensor(found.sampler["effective_sample_size"]).double()
    assert float(((found.mean - mean) / sd * effective.sqrt()).abs().max()) < ERRORS
    assert float(((found.sd / sd - 1) * effective.sqrt()).abs().max()) < ERRORS
    correlation, exact = (
        c / c.diagonal().sqrt() / c.diagonal().sqrt()[:, None] for c in (found.covariance, covariance)
    )
    torch.testing.assert_close(correlation, exact, rtol=0, atol=ERRORS / float(effective.min()) ** 0.5)
    assert abs(found.log_evidence - evidence) < ERRORS * found.log_evidence_error


@pytest.mark.parametrize("name", ["linear-core", "correlated-core"])
def test_linear_targets_by_conjugacy(name: str) -> None:
    mean, covariance, evidence = conjugate(name)
    agrees(reference(name), mean, covariance, evidence)
    narrow = (torch.linalg.inv(covariance).diagonal() * covariance.diagonal()).rsqrt()
    assert float(narrow.min()) < (0.2 if name == "correlated-core" else 0.75), "no mean field would be near it"


def test_the_funnel_by_quadrature_over_its_scale() -> None:
    """Given τ all is conjugate: p(y) = ∫ p(y | τ) p(τ) dτ, and the moments are those of the mixture over τ."""
    found = reference("scale-funnel")
    log_tau = torch.linspace(-3.5, 2.5, 41).double()
    given = [conjugate("scale-funnel", float(t.exp())) for t in log_tau]
    weight = Normal(-0.5, 0.5).log_prob(log_tau) + torch.tensor([g[2] for g in given]).double()
    step = float(log_tau[1] - log_tau[0])
    evidence = float(torch.logsumexp(weight, 0)) + math.log(step)
    share = weight.softmax(0)
    means = torch.cat([torch.stack([g[0] for g in given]), log_tau[:, None]], 1)
    inner = torch.stack([torch.block_diag(g[1], torch.zeros(1, 1).double()) for g in given])
    mean = (share[:, None] * means).sum(0)
    off = means - mean
    covariance = (share[:, None, None] * (inner + off[:, :, None] * off[:, None])).sum(0)
    assert found.entries[-1] == "tau"
    agrees(found, mean, covariance, evidence)


def test_the_product_by_quadrature_has_two_modes() -> None:
    """y = w₁ w₂ x + ε in numpy's place: no model takes part."""
    found = reference("product")
    batch = found.make_batch()
    assert isinstance(batch.targets, Tensor)
    x, y = batch.inputs["x"][:, 0, 0].double(), batch.targets.double()
    axis = torch.linspace(-5.0, 5.0, 201).double()
    a, b = torch.meshgrid(axis, axis, indexing="ij")
    log = Normal(a[..., None] * b[..., None] * x, 0.5).log_prob(y).sum(-1)
    log = log + Normal(0.0, 1.0).log_prob(a) + Normal(0.0, 1.0).log_prob(b)
    evidence = float(torch.logsumexp(log.flatten(), 0)) + 2 * math.log(float(axis[1] - axis[0]))
    share = log.flatten().softmax(0)
    w = torch.stack([a.flatten(), b.flatten()], 1)
    covariance = w.T @ (share[:, None] * w)
    agrees(found, torch.zeros(2).double(), covariance, evidence)
    assert float((found.draws.prod(1) > 0).double().mean()) > 0.95
    assert 0.4 < float((found.draws[:, 0] > 0).double().mean()) < 0.6


def test_two_numbers_in_a_bert_by_quadrature() -> None:
    """The density is the model's own; the draws, the moments and the evidence are not."""
    found = reference("logistic-diagonal")
    model, batch = found.make_model(), found.make_batch()
    axes = torch.linspace(-4.5, 4.5, 19).double(), torch.linspace(-3.0, 3.0, 25).double()
    w = torch.cartesian_prod(*axes)
    log = torch.tensor([log_density(model, batch, point) for point in w]).double()
    evidence = float(torch.logsumexp(log, 0)) + math.log(float((axes[0][1] - axes[0][0]) * (axes[1][1] - axes[1][0])))
    share = log.softmax(0)
    mean = share @ w
    agrees(found, mean, (w - mean).T @ (share[:, None] * (w - mean)), evidence)


def trained(make: Any, name: str = "linear-core") -> tuple[Any, Any, Reference]:
    exact = reference(name)
    model = exact.make_model()
    torch.manual_seed(0)
    guide = make(model)
    options: dict[str, Any] = {"kl_weight": 1.0, "num_particles": 64, "epochs": 80, "progress": False}
    options["optimizer"] = lambda parameters: torch.optim.Adam(parameters, lr=0.15)
    options["scheduler"] = lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    fit(model, guide, exact.make_batch(), **options)
    return model, guide, exact


def test_mean_field_is_as_narrow_as_it_must_be_and_a_full_gaussian_is_the_posterior() -> None:
    """The sd of a mean field is 1/√Λ_ii, that of the posterior √(Λ⁻¹)_ii."""
    _, covariance, _ = conjugate("linear-core")
    must = (torch.linalg.inv(covariance).diagonal() * covariance.diagonal()).rsqrt()
    assert float(must.min()) < 0.75
    mean_field = closeness(*trained(MeanField))
    torch.testing.assert_close(mean_field.sd_ratio, must, rtol=0.1, atol=0)
    full = closeness(*trained(lambda model: FullGaussian(model, over="all")))
    torch.testing.assert_close(full.sd_ratio, torch.ones(4).double(), rtol=0.1, atol=0)
    for found in (mean_field, full):
        assert float(found.mean_error.abs().max()) < 0.15
    assert full.kl is not None
    assert mean_field.kl is not None
    assert abs(full.kl) < 0.1 < mean_field.kl
    assert full.energy < 0.02 < mean_field.energy
    assert float(full.wasserstein.max()) < 0.15 < float(mean_field.wasserstein.max())
    assert full.khat is not None
    assert full.khat < 0.5


def test_draws_of_the_posterior_itself_are_near_it_and_one_of_two_modes_is_not() -> None:
    exact = reference("product")
    model = exact.make_model()

    def of(draws: Tensor) -> Any:
        values = {site.name: draws[:, [i]].reshape(-1, *site.shape).float() for i, site in enumerate(model.sites)}
        return closeness(model, StoredDraws.of(model, values), exact, num_samples=len(draws))

    whole, one = of(exact.draws), of(exact.draws.abs())
    assert whole.khat is None
    assert abs(whole.energy) < 0.02
    assert float((whole.sd_ratio - 1).abs().max()) < 0.15
    assert one.energy > 0.3
    assert float(one.sd_ratio.max()) < 0.8
    assert "energy distance" in str(one)


def test_the_energy_distance_of_two_gaussians() -> None:
    """Of N(0, 1) and N(μ, 1): 2 E|N(μ, 2)| − 2 E|N(0, 2)|, E|N(m, s²)| = s √(2/π) exp(−m²/2s²) + m erf(m/(s√2))."""
    source = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1500, 1, generator=source, dtype=torch.float64) for _ in range(2))
    s = math.sqrt(2)

    def away(m: float) -> float:
        return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(m / (s * math.sqrt(2)))

    right = 2 * away(1.0) - 2 * away(0.0)
    one = torch.eye(1).double()
    assert energy_distance(a, b + 1.0, one) == pytest.approx(right, abs=0.06)
    assert energy_distance(a, b, one) == pytest.approx(0.0, abs=0.01)
    assert energy_distance(3 * a, 3 * b + 3.0, 9 * one) == pytest.approx(right, abs=0.06)


def test_a_reference_made_anew_is_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--draws", "10", "--warmup", "5", "--chains", "1", "--proposals", "20"]
    options = [*sizes, "--plain", "--out", str(tmp_path)]
    assert recreate.main(["linear-core", *options]) == 0
    assert "linear-core: R-hat" in capsys.readouterr().out
    found = json.loads((tmp_path / "linear-core.json").read_text())
    assert set(found) == set(
        json.loads(Path(targets.__file__).with_name("references").joinpath("linear-core.json").read_text())
    )
    assert found["sampler"]["draws"] == 10


def test_what_is_no_target_of_a_reference_is_refused() -> None:
    with refuses(ConfigError, "linear-cor", "linear-core"):
        reference("linear-cor")
    exact = reference("linear-core")
    model = exact.make_model()
    with torch.no_grad():
        model.head.get_parameter("bias").add_(0.5)
    with refuses(ConfigError, "linear-core", "make_model"):
        closeness(model, MeanField(model), exact)
    other = reference("correlated-core").make_model()
    assert isinstance(other, StochasticCore)
    with refuses(ConfigError, "linear-core", "core.global[0,2,2]"):
        closeness(other, MeanField(other), replace(exact))
    with unchecked(), refuses(ConfigError, "reference('linear-core')", "str"):
        closeness(other, MeanField(other), "correlated-core")  # type: ignore[arg-type]
