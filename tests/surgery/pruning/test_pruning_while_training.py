"""A schedule prunes during a run, and an interrupted run continues bit for bit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Gaussian, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import RankWise
from bayes_adapters.models import StochasticFactors
from bayes_adapters.surgery.pruning import PruneSchedule
from bayes_adapters.training import FitResult, batches, fit
from tests.helpers import Linear, bert, token_batch
from tests.rank_wise.parts import LAYERS
from tests.rank_wise.parts import pair as fresh
from tests.refusals import refuses
from tests.surgery.pruning.parts import key, pair
from tests.training.parts import same, weights

WHOLE = token_batch(22, seed=3)


def run(model: Any, guide: Any, epochs: int = 4, **options: Any) -> FitResult:
    """Four epochs of six steps."""
    optimizer = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
    source = batches(WHOLE, 4, seed=7)
    return fit(model, guide, source, epochs=epochs, optimizer=optimizer, progress=False, **options)


def schedule(**options: Any) -> PruneSchedule:
    return PruneSchedule(**({"threshold": 1.0, "start": 8, "every": 4} | options))


def test_the_schedule_looks_when_it_should() -> None:
    model, guide = pair()
    plan = schedule(until=17)
    run(model, guide, on_step=plan)
    assert [record.step for record in plan.records] == [8, 12, 16]
    assert plan.records[0].before == dict.fromkeys(LAYERS, 3)
    assert plan.records[0].removed >= 4
    assert plan.records[-1].after == model.ranks


BAD: dict[str, tuple[dict[str, Any], tuple[object, ...]]] = {
    "start 0": ({"start": 0}, ("start", 1, 0)),
    "min_rank": ({"min_rank": -1}, ("min_rank", 0, -1)),
    "threshold": ({"threshold": float("nan")}, ("threshold", "nan")),
}


@pytest.mark.parametrize("case", BAD)
def test_a_schedule_that_could_never_prune_is_refused_before_the_warm_up(case: str) -> None:
    options, facts = BAD[case]
    with refuses(ConfigError, *facts):
        schedule(**options)


def test_without_a_warm_up_a_run_stops_rather_than_lose_its_adapter() -> None:
    model, guide = fresh(num_data=22, scale=1e-3, init_log_variance=-4.0)
    with refuses(ConfigError, "threshold=2", 12, "PruneSchedule(start=…)", "allow_empty=True"):
        run(model, guide, on_step=PruneSchedule(threshold=2.0, start=1))
    assert set(model.ranks.values()) == {3}


@pytest.mark.parametrize("stop", [5, 8, 9, 14])
@pytest.mark.parametrize("options", [{}, {"tie": False, "local_reparametrisation": True}])
def test_an_interrupted_run_with_pruning_continues_bit_exactly(
    stop: int, options: dict[str, Any], tmp_path: Path
) -> None:
    """Stopped before, at and after removals: weights, history, records and the noise are those of an unstopped run."""

    common = {"validation": [WHOLE[:6]], "num_samples": 3}
    model, guide = pair(**options)
    plan = schedule()
    straight = run(model, guide, on_step=plan, **common)
    expected = weights(model, guide)
    assert any(record.removed for record in plan.records)

    model, guide = pair(**options)
    config = {"threshold": 1.0, "start": 8, "every": 4}
    with pytest.raises(KeyboardInterrupt):
        interrupted(model, guide, stop, tmp_path, on_step=PruneSchedule(**config), **common)
    model, guide = pair(**options)
    again = PruneSchedule(**config)
    resumed = run(model, guide, on_step=again, checkpoint=tmp_path, **common)
    assert same(weights(model, guide), expected)
    assert again.records == plan.records
    drop = {"examples_per_second"}
    for a, b in zip(straight.history, resumed.history, strict=True):
        assert {k: v for k, v in a.items() if k not in drop} == {k: v for k, v in b.items() if k not in drop}
    assert (resumed.best_epoch, resumed.best_value) == (straight.best_epoch, straight.best_value)


def interrupted(model: Any, guide: Any, stop: int, folder: Path, **options: Any) -> None:
    """Ctrl-C before the step after ``stop``."""
    source = batches(WHOLE, 4, seed=7)

    class Data(type(source)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            for i, batch in enumerate(super().__iter__()):
                if self.epoch * 6 + i == stop:
                    raise KeyboardInterrupt
                yield batch

    data = Data(WHOLE, 4, None, shuffle=True, seed=7, drop_last=False)
    optimizer = lambda p: torch.optim.Adam(p, lr=1e-2)  # noqa: E731
    fit(model, guide, data, epochs=4, optimizer=optimizer, progress=False, checkpoint=folder, **options)


def test_a_checkpoint_is_refused_by_another_schedule_or_a_model_pruned_already(tmp_path: Path) -> None:
    model, guide = pair()
    with pytest.raises(KeyboardInterrupt):
        interrupted(model, guide, 9, tmp_path, on_step=schedule())
    with refuses(ConfigError, "model.ranks", "None", "parameters.guide.loc"):
        run(model, guide, on_step=schedule(), checkpoint=tmp_path)
    for other in (schedule(threshold=1.5), None):
        with refuses(ConfigError, "on_step", "'PruneSchedule(threshold=1.0"):
            run(*pair(), on_step=other, checkpoint=tmp_path)


def test_a_checkpoint_holds_a_prior_that_differs_by_rank(tmp_path: Path) -> None:
    def build() -> Any:
        prior = pyro.distributions.Normal
        by_rank = {"A.*": prior(torch.zeros(3, 1), torch.tensor([[1.0], [2.0], [3.0]])), "B.*": prior(0.0, 1.0)}
        torch.manual_seed(4)
        model = StochasticFactors(bert(), Bernoulli(), rank=3, num_data=22, prior=by_rank)
        guide = RankWise(model, init_log_variance=-4.0)
        with torch.no_grad():
            for name, loc in guide.loc.items():
                loc.mul_(1.0 if name.startswith("A") else 500.0)
            guide.loc[key("A", 0)][0, 0].mul_(1e-4)
            guide.loc[key("B", 0)][0, :, 0].mul_(1e-4)
        return model, guide

    first, second = build(), build()
    run(*first, epochs=3, on_step=schedule(until=8))
    assert first[0].ranks[LAYERS[0]] == 2
    with pytest.raises(KeyboardInterrupt):
        interrupted(*second, 9, tmp_path, on_step=schedule(until=8))
    resumed = build()
    run(*resumed, epochs=3, on_step=schedule(until=8), checkpoint=tmp_path)
    assert same(weights(*first), weights(*resumed))
    for a, b in zip(first[0].prior.buffers(), resumed[0].prior.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_best_epoch_is_one_after_the_last_removal() -> None:
    values = iter([0.0, 5.0, 4.0, 6.0])
    model, guide = pair()
    result = run(model, guide, on_step=schedule(until=8), evaluate=lambda m, g: {"mine": next(values)}, monitor="mine")
    assert (result.best_epoch, result.best_value) == (2, 4.0), "epoch 0 was better, with ranks that are gone"


def test_training_leaves_the_one_rank_that_the_data_need() -> None:
    """y depends on x through a rank-1 update: under the log-uniform prior the other ranks' dropout rates grow."""
    torch.manual_seed(0)
    model = StochasticFactors(Linear(), Gaussian(math.log(0.3)), targets=["query"], rank=4, alpha=4.0, num_data=256)
    model.head.requires_grad_(False)
    model.likelihood.requires_grad_(False)
    guide = RankWise(model, init_log_variance=-6.0, local_reparametrisation=True)
    x = torch.randn(256, 1, 4)
    with torch.no_grad():
        y = model.head(model.backbone.query.base_layer(x)[:, 0])[:, 0] + x[:, 0] @ torch.tensor([1.0, -2.0, 0.5, 1.5])
    batch = Batch({"x": x}, y)
    plan = PruneSchedule(threshold=2.0, start=200, every=50)
    adam = lambda p: torch.optim.Adam(p, lr=0.1)  # noqa: E731
    fit(model, guide, [batch] * 50, epochs=7, optimizer=adam, kl_weight=20.0, progress=False, on_step=plan)
    assert model.ranks == {"query": 1}
    error = (predict(model, guide, batch, mean_only=True).mean - y).square().mean().sqrt()
    assert error < 0.2


def test_a_schedule_that_would_never_prune_is_refused() -> None:
    with refuses(ConfigError, "until=500", "start=1000"):
        PruneSchedule(threshold=3.0, until=500)
    PruneSchedule(threshold=3.0, start=500, until=500)
