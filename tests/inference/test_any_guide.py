"""``predict`` under guides that are not the library's: autoguides, bare callables, draws of MCMC."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Bernoulli, Gaussian, Granularity, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from tests.helpers import Linear, core_model, token_batch
from tests.refusals import refuses


def regression() -> tuple[AdapterModel, Batch]:
    """Six examples, one random number."""
    torch.manual_seed(5)
    batch = Batch({"x": torch.randn(6, 3, 4)}, targets=torch.randn(6))
    one: dict[str, Any] = {"targets": ["query"], "rank": 1, "prior": dist.Normal(0.0, 1.0), "num_data": 6}
    model = core_model("global", backbone=Linear(), likelihood=Gaussian(-1.0), **one)
    model.requires_grad_(False)
    return model, batch


def outputs_at(model: AdapterModel, batch: Batch, core: float) -> Tensor:
    return poutine.condition(model, {"core.global": torch.full((1, 1, 1), core)})(batch)[:, 0]


def exact(model: AdapterModel, batch: Batch) -> tuple[float, float]:
    """Mean and deviation of the posterior of the core e: outputs are linear in e, so it is Gaussian."""
    with torch.no_grad():
        zero, one = (outputs_at(model, batch, e) for e in (0.0, 1.0))
    slope, noise = one - zero, math.exp(-2.0)
    precision = 1 + float(slope.square().sum()) / noise
    return float((slope * (batch.targets - zero)).sum()) / noise / precision, precision**-0.5


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(torch.stack([p, 1 - p])).sum(0)


def by_hand(model: AdapterModel, batch: Batch, draws: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, total, aleatoric and log density of a Bernoulli, one pass of the conditioned model per draw."""
    count = len(next(iter(draws.values())))
    with torch.no_grad():
        each = [poutine.condition(model, {n: v[s] for n, v in draws.items()})(batch)[:, 0] for s in range(count)]
    p = torch.stack(each).double().sigmoid()
    y = batch.targets.double()
    density = (p * y + (1 - p) * (1 - y)).mean(0).log()
    return p.mean(0), entropy(p.mean(0)), entropy(p).mean(0), density


def same_split(found: Any, expected: tuple[Tensor, ...]) -> None:
    for value, other in zip((found.mean, found.total, found.aleatoric, found.log_density), expected, strict=True):
        torch.testing.assert_close(value.double(), other, rtol=1e-5, atol=1e-6)
    assert found.epistemic.max() > 1e-6


def test_draws_of_nuts_have_the_known_posterior_and_its_predictive() -> None:
    model, batch = regression()
    mean, deviation = exact(model, batch)
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model), num_samples=150, warmup_steps=80, disable_progbar=True)
    mcmc.run(batch)
    draws = mcmc.get_samples()
    assert draws["core.global"].shape == (150, 1, 1, 1)
    assert draws["core.global"].mean().item() == pytest.approx(mean, abs=4 * deviation / math.sqrt(50))
    assert draws["core.global"].std().item() == pytest.approx(deviation, rel=0.25)
    found = predict(model, draws, batch, return_samples=True)
    assert found.num_samples == 150
    with torch.no_grad():
        each = torch.stack([poutine.condition(model, {"core.global": e})(batch)[:, 0] for e in draws["core.global"]])
    torch.testing.assert_close(found.samples, each, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.mean, each.mean(0), rtol=1e-4, atol=1e-5)
    variance = each.double().var(0, correction=0) + math.exp(-2.0)
    torch.testing.assert_close(found.variance.double(), variance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_draws_of_a_dictionary_split_as_by_hand(chunk: int | None) -> None:
    model, batch = core_model("global"), token_batch()
    draws = {"core.global": torch.randn(7, 4, 3, 3)}
    same_split(predict(model, draws, batch, chunk_size=chunk), by_hand(model, batch, draws))
    halves = predict(model, draws, [batch[:2], batch[2:]], chunk_size=chunk)
    same_split(halves, by_hand(model, batch, draws))
    fewer = predict(model, draws, batch, num_samples=3)
    same_split(fewer, by_hand(model, batch, {"core.global": draws["core.global"][[0, 3, 6]]}))
    point = predict(model, draws, batch, mean_only=True)
    mean = {"core.global": draws["core.global"].mean(0, keepdim=True)}
    torch.testing.assert_close(point.mean.double(), by_hand(model, batch, mean)[0], rtol=1e-5, atol=1e-6)
    assert not point.epistemic.any()


@pytest.mark.parametrize("kind", [AutoNormal, AutoMultivariateNormal, AutoLowRankMultivariateNormal])
def test_an_autoguide_trained_by_stock_svi(kind: Any) -> None:
    """The split equals that of the guide's own draws, made again one by one."""
    model, batch = core_model("global", rank=2), token_batch()
    guide = kind(model, init_scale=0.5)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        svi.step(batch)
    torch.manual_seed(4)
    state = torch.get_rng_state()
    found = predict(model, guide, batch, num_samples=6, return_samples=True)
    assert torch.equal(torch.get_rng_state(), state)
    again = predict(model, guide, [batch[:1], batch[1:]], num_samples=6, chunk_size=2, return_samples=True)
    torch.testing.assert_close(found.samples, again.samples, rtol=1e-5, atol=1e-6)
    other = predict(model, guide, batch, num_samples=6, return_samples=True, seed=1)
    assert (other.samples - found.samples).abs().max() > 1e-3
    draws = []
    for s in range(6):
        torch.manual_seed(s)  # seed 0, draw s
        draws.append(poutine.trace(guide).get_trace(batch).nodes["core.global"]["value"].detach())
    same_split(found, by_hand(model, batch, {"core.global": torch.stack(draws)}))
    median = predict(model, guide, batch, mean_only=True)
    centre = {"core.global": guide.median(batch)["core.global"].detach()[None]}
    torch.testing.assert_close(median.mean.double(), by_hand(model, batch, centre)[0], rtol=1e-5, atol=1e-6)


def test_an_autoguide_finds_the_known_posterior_and_predict_shows_its_variance() -> None:
    model, batch = regression()
    mean, deviation = exact(model, batch)
    guide = AutoNormal(model)
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), elbo)
    for _ in range(300):
        svi.step(batch)
    loc, scale = (pyro.param(f"AutoNormal.{name}.core.global").item() for name in ("locs", "scales"))
    assert loc == pytest.approx(mean, abs=deviation / 2)
    assert scale == pytest.approx(deviation, rel=0.3)
    found = predict(model, guide, batch, num_samples=400)
    with torch.no_grad():
        zero, one = (outputs_at(model, batch, e) for e in (0.0, 1.0))
    expected = (one - zero).square() * scale**2 + math.exp(-2.0)
    torch.testing.assert_close(found.variance, expected, rtol=0.1, atol=1e-3)


def test_a_bare_callable() -> None:
    model, batch = core_model("global"), token_batch()
    draws = torch.randn(4, 3, 3)

    def guide(_: Batch) -> None:
        pyro.sample("core.global", dist.Normal(draws, 0.3).to_event(3))

    found = predict(model, guide, batch, num_samples=5, return_samples=True)
    assert found.samples.std(0).max() > 1e-3
    seedless = [predict(model, guide, batch, num_samples=5, seed=None).mean for _ in range(2)]
    assert not torch.equal(*seedless)
    torch.manual_seed(2)
    first = predict(model, guide, batch, num_samples=5, seed=None).mean
    torch.manual_seed(2)
    assert torch.equal(predict(model, guide, batch, num_samples=5, seed=None).mean, first)
    conditioned = poutine.condition(MeanField(model), {"core.global": draws})
    with refuses(ConfigError, "core.global"):
        predict(model, lambda _: None, batch)
    with pytest.raises(ConfigError):
        predict(model, guide, batch, mean_only=True)
    assert conditioned is not None


def test_a_dictionary_of_draws_of_hyper_parameters_and_cores() -> None:
    def prior(name: str, shape: tuple[int, ...]) -> Any:
        return dist.Normal(0.0, pyro.sample("tau", dist.HalfCauchy(1.0))).expand(shape)

    model, batch = core_model("global", prior=prior), token_batch()
    draws = {"core.global": torch.randn(4, 4, 3, 3), "tau": torch.rand(4) + 0.1}
    found = predict(model, draws, batch)
    same_split(found, by_hand(model, batch, draws))
    assert torch.equal(predict(model, {"core.global": draws["core.global"]}, batch).mean, found.mean)


@pytest.mark.parametrize(
    "draws",
    [{}, {"core.global": torch.zeros(5, 4, 3, 2)}, {"core.globl": torch.zeros(5, 4, 3, 3)}],
    ids=["none", "shape", "name"],
)
def test_draws_that_do_not_fit(draws: Any) -> None:
    with pytest.raises(ConfigError):
        predict(core_model("global"), draws, token_batch())


def test_guides_that_are_none() -> None:
    model, batch = core_model("global"), token_batch()
    with refuses(ConfigError, "(S, …)"):
        predict(model, MeanField, batch)
    with refuses(ConfigError, "AutoNormal"):
        predict(model, AutoNormal(model), batch)
    with refuses(ConfigError, "6"):
        predict(model, {"core.global": torch.zeros(5, 4, 3, 3)}, batch, num_samples=6)


# ---- what is not random is run once ----


class Counted:
    """Counts the passes through a model's first adapted layer, and the rows of each."""

    def __init__(self, model: AdapterModel) -> None:
        self.rows: list[int] = []
        model.backbone.get_submodule(model.layers[0]).register_forward_pre_hook(self._note)

    def _note(self, module: Any, args: Any) -> None:
        self.rows.append(len(args[0]))


@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian])
def test_a_point_estimate_is_run_once_and_answers_as_draws_would(likelihood: Any) -> None:
    class Unsaid(Delta):
        @property
        def deterministic(self) -> bool:
            return False

    model, batch = core_model("global", likelihood=likelihood()), token_batch()
    torch.manual_seed(1)
    guide = Delta(model)
    unsaid = Unsaid(model)
    unsaid.load_state_dict(guide.state_dict())
    count = Counted(model)
    found = predict(model, guide, batch, num_samples=16, return_samples=True)
    assert count.rows == [5]
    expected = predict(model, unsaid, batch, num_samples=16, return_samples=True)
    assert sum(count.rows[1:]) == 80
    assert found.num_samples == 16
    assert found.samples.shape == (16, 5)
    for name in ("mean", "total", "aleatoric", "epistemic", "log_density", "samples"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-7)
    count.rows.clear()
    auto = AutoDelta(model)
    auto(batch)
    count.rows.clear()
    predict(model, auto, batch, num_samples=16)
    assert count.rows == [5]


def test_a_guide_that_wrongly_calls_itself_a_point_is_refused() -> None:
    class Wrong(AdapterGuide):
        name, serves, deterministic = "wrong", frozenset(Granularity), True  # type: ignore[assignment]

        def posterior(self, call: Any, prior: Any) -> Any:
            return dist.Normal(torch.zeros(3, 3), 1.0).to_event(2)

    model = core_model("global")
    with refuses(ConfigError, "deterministic"):
        predict(model, Wrong(model), token_batch())


def test_memory_is_bounded_by_default_and_no_number_depends_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = core_model("global"), token_batch()
    guide = MeanField(model)
    count = Counted(model)
    whole = predict(model, guide, batch, num_samples=9)
    assert count.rows == [45]
    count.rows.clear()
    monkeypatch.setattr("bayes_adapters.inference.predictive._BUDGET", 4 * 5 * 7 * 16)
    bounded = predict(model, guide, batch, num_samples=9)
    assert count.rows == [20, 20, 5]
    torch.testing.assert_close(bounded.total, whole.total, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr("bayes_adapters.inference.predictive._BUDGET", 1)
    count.rows.clear()
    predict(model, guide, batch, num_samples=3)
    assert count.rows == [5, 5, 5]


@pytest.mark.parametrize("likelihood", [Bernoulli, Gaussian])
def test_the_corrected_epistemic_part_has_no_bias_of_the_number_of_draws(likelihood: Any) -> None:
    """Over many seeds, 2 draws see half of what 400 see, and the corrected part sees all of it."""
    model, batch = core_model("global", likelihood=likelihood()), token_batch(16)
    guide = MeanField(model, init_scale=0.3)
    limit = predict(model, guide, batch, num_samples=400).epistemic.double().mean().item()
    pairs = [predict(model, guide, batch, num_samples=2, seed=s) for s in range(150)]
    plain = torch.stack([p.epistemic.double().mean() for p in pairs]).mean().item()
    corrected = torch.stack([p.epistemic_corrected.double().mean() for p in pairs]).mean().item()
    assert plain / limit == pytest.approx(0.5, abs=0.1)
    assert corrected / limit == pytest.approx(1.0, abs=0.2)
    assert predict(model, guide, batch, num_samples=1).epistemic_corrected.isnan().all()
