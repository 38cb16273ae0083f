"""Draws until each example is known: each answer is that of its own number of draws, and the intervals hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from bayes_adapters import Batch, Bernoulli, Categorical, Gaussian, Prediction, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.inference._drawn import Drawn, Spread
from bayes_adapters.inference.tolerance import Tolerance
from bayes_adapters.likelihoods import Tasks
from bayes_adapters.models import LoRA, StochasticCore
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses
from tests.retrieval.parts import pairs, towers

FIELDS = ("mean", "total", "aleatoric", "epistemic", "log_density", "variance", "aleatoric_variance",
          "epistemic_variance")  # fmt: skip


def half_of_them(model: Any, guide: Any, batch: Batch) -> float:
    """A tolerance that about half of the examples keep at the first look: t(.99, ν = 7) / √8 of the median spread."""
    samples = predict(model, guide, batch, num_samples=64, return_samples=True).samples
    assert samples is not None
    return float(samples.std(0).reshape(batch.size, -1).amax(1).median()) * 1.05


def same_as_own_number(found: Prediction, model: Any, guide: Any, data: Any, **options: Any) -> None:
    """Each row is that of a prediction with as many draws as it took."""
    assert found.draws is not None
    for count in found.draws.unique().tolist():
        other = predict(model, guide, data, num_samples=count, **options)
        rows = found.draws == count
        for name in FIELDS:
            mine, theirs = getattr(found, name), getattr(other, name)
            assert (mine is None) == (theirs is None), name
            if mine is not None:
                torch.testing.assert_close(mine[rows], theirs[rows], rtol=1e-4, atol=2e-6, msg=name)
        torch.testing.assert_close(
            found.epistemic_corrected[rows], other.epistemic_corrected[rows], rtol=1e-4, atol=2e-6
        )


@pytest.mark.parametrize("granularity", ["global", "token"])
def test_each_answer_is_that_of_its_own_number_of_draws(granularity: str) -> None:
    model = core_model(granularity)
    guide = MeanField(model, init_scale=0.5) if granularity == "global" else Contextual(model)
    batch = token_batch()
    tolerance = half_of_them(model, guide, batch)
    found = predict(model, guide, batch, tolerance=tolerance, num_samples=40)
    assert found.draws is not None
    assert found.error is not None
    assert set(found.draws.tolist()) <= {8, 16, 32, 40}
    assert len(found.draws.unique()) > 1
    assert bool(((found.error <= tolerance) | (found.draws == 40)).all())
    assert found.num_samples == int(found.draws.max())
    same_as_own_number(found, model, guide, batch)
    cut = predict(model, guide, [batch[:1], batch[1:]], tolerance=tolerance, num_samples=40, chunk_size=3)
    assert torch.equal(cut.draws, found.draws)  # type: ignore[arg-type]
    same_as_own_number(cut, model, guide, batch)


@pytest.mark.parametrize("likelihood", [Categorical(3), Gaussian(target_mean=3.0, target_scale=20.0)])
def test_other_likelihoods(likelihood: Any) -> None:
    torch.manual_seed(1)
    model = fill_B(StochasticCore(bert(), likelihood, rank=2, granularity="global", num_data=10))
    guide, batch = MeanField(model, init_scale=0.5), token_batch()
    values = torch.arange(5) % 3 if isinstance(likelihood, Categorical) else torch.arange(5.0)
    batch = replace(batch, targets=values)
    found = predict(model, guide, batch, tolerance=half_of_them(model, guide, batch))
    same_as_own_number(found, model, guide, batch)
    assert found.log_density is not None
    assert bool(found.error is not None)
    none = predict(model, guide, batch, tolerance=1e9)
    assert none.draws is not None
    assert none.draws.tolist() == [8] * 5


def test_several_tasks_say_it_too() -> None:
    torch.manual_seed(0)
    model = fill_B(
        StochasticCore(bert(), Tasks({"a": Bernoulli(), "b": Categorical(3)}), rank=2, granularity="global", num_data=9)
    )
    guide = MeanField(model, init_scale=0.5)
    batch = replace(token_batch(), targets=None)
    found = predict(model, guide, batch, tolerance=half_of_them(model, guide, batch))
    same_as_own_number(found, model, guide, batch)
    assert found["b"].draws is not None
    assert torch.equal(found["b"].draws, found.draws)


def test_the_error_is_students_half_width_of_the_draws() -> None:
    model = core_model("global")
    guide, batch = MeanField(model, init_scale=0.5), token_batch()
    found = predict(model, guide, batch, tolerance=1e-9, num_samples=16)
    samples = predict(model, guide, batch, num_samples=16, return_samples=True).samples
    assert samples is not None
    assert found.error is not None
    assert found.draws is not None
    assert found.draws.tolist() == [16] * 5
    # two looks, 97.5 % each, 15 degrees of freedom: t = 2.4899 (tables of Student's distribution)
    expected = 2.4899 * samples.double().std(0) / 4.0
    torch.testing.assert_close(found.error.double(), expected, rtol=1e-4, atol=1e-7)


def test_nothing_random_takes_one_pass() -> None:
    model = LoRA(bert(), Bernoulli(), rank=2)
    found = predict(model, Delta(model), token_batch(), tolerance=0.01)
    assert found.draws is not None
    assert found.error is not None
    assert found.draws.tolist() == [1] * 5
    assert found.error.tolist() == [0.0] * 5
    assert found.num_samples == 1
    assert bool(found.epistemic_corrected.isnan().all())


def test_where_draws_agree_few_are_taken() -> None:
    """Sure examples end at the first look, unsure ones go on: passes are spent where draws disagree."""
    model = core_model("global")
    guide, batch = MeanField(model, init_scale=1.0), token_batch()
    found = predict(model, guide, batch, tolerance=0.02, num_samples=256)
    samples = predict(model, guide, batch, num_samples=256, return_samples=True).samples
    assert samples is not None
    assert found.draws is not None
    order = samples.std(0).argsort()
    assert found.draws[order[0]] <= found.draws[order[-1]]
    assert (found.mean - samples.mean(0)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("shape", "tolerance", "least"),
    [((2.0, 2.0), 0.1, 0.95), ((0.5, 0.5), 0.15, 0.95), ((1.0, 9.0), 0.06, 0.94)],
)
def test_intervals_hold_whichever_look_ends_it(shape: tuple[float, float], tolerance: float, least: float) -> None:
    """4,000 examples whose draws are Beta: the mean of infinitely many is within the error about as often as said."""
    torch.manual_seed(0)
    draws = dist.Beta(*map(torch.tensor, shape)).sample(torch.Size([128, 4000])).double()
    truth = shape[0] / sum(shape)
    rule, left, held, taken = Tolerance(tolerance), torch.arange(4000), [], []
    done, drawn = 0, Drawn()
    for look in rule.looks:
        part = Spread.of(draws[done:look, left], None if drawn.spread is None else drawn.spread.origin)
        drawn = drawn.and_(Drawn(look - done, spread=part))
        error = rule.error(drawn)
        known = (error <= rule.tolerance) | torch.full_like(left, look == rule.most, dtype=torch.bool)
        away = (draws[:look, left].mean(0) - truth).abs()
        held.append((away <= error)[known])
        taken += [look] * int(known.sum())
        left, done, drawn = left[~known], look, drawn.rows((~known).nonzero()[:, 0])
    assert len(set(taken)) > 1
    assert float(torch.cat(held).double().mean()) >= least


def test_spread_of_parts_is_that_of_all() -> None:
    torch.manual_seed(0)
    means = 1e4 + torch.randn(12, 5, 3, dtype=torch.float64)  # far from 0: sums of plain squares would round
    first = Spread.of(means[:5])
    both = first.and_(Spread.of(means[5:], first.origin))
    expected = means.std(0).amax(1) / 12**0.5
    unit = both.error(0.95) / expected
    torch.testing.assert_close(unit, torch.full_like(unit, 2.20099), rtol=1e-5, atol=0.0)  # t(.975), ν = 11


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"tolerance": 0.0}, (0.0,)),
        ({"tolerance": float("nan")}, ("nan",)),
        ({"tolerance": True}, (True,)),
        ({"tolerance": 0.1, "num_samples": 1}, ("num_samples", 2)),
        ({"tolerance": 0.1, "mean_only": True}, ("mean_only",)),
        ({"tolerance": 0.1, "return_samples": True}, ("return_samples",)),
        ({"tolerance": 0.1, "linearised": True}, ("linearised",)),
    ],
)
def test_refusals(options: dict[str, Any], facts: tuple[object, ...]) -> None:
    model = core_model("global")
    with refuses(ConfigError, *facts):
        predict(model, MeanField(model), token_batch(), **options)


def test_draws_that_were_made_before_and_answers_of_a_whole_batch_are_refused() -> None:
    model = core_model("global")
    draws: dict[str, Tensor] = {site.name: torch.randn(20, *site.shape) for site in model.sites}
    with refuses(ConfigError, "tolerance"):
        predict(model, draws, token_batch(), tolerance=0.1)
    ranked = towers()
    with refuses(ConfigError, "Contrastive"):
        predict(ranked, MeanField(ranked), pairs(3), tolerance=0.1)


def test_looks() -> None:
    assert Tolerance(0.1).looks == [8, 16, 32, 64, 128]
    assert Tolerance(0.1, 5).looks == [5]
    assert Tolerance(0.1, 64).looks == [8, 16, 32, 64]
    assert Tolerance(0.1, 65).looks == [8, 16, 32, 64, 65]
