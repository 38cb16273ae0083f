"""``tune``: every setting of a grid is trained alike, recorded, and the one with the lowest validation NLL returned."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import predict
from bayes_adapters.errors import AdapterFileError, ConfigError, NonFiniteError, PointPosteriorWarning
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.heads import VariationalLastLayer
from bayes_adapters.training import TuneResult, fit, tune
from bayes_adapters.training._tune_checks import read_seeds
from tests.helpers import core_model, token_batch
from tests.refusals import refuses, warns

TRAIN, HELD = token_batch(12, seed=3), token_batch(8, seed=4)
GRID: dict[str, Any] = {"kl_weight": [1.0, 0.01], "prior_scale": [0.2, 0.5]}


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.05)


class Maker:
    """Counts its calls; the call number ``stop`` is interrupted."""

    def __init__(self, stop: int | None = None) -> None:
        self.calls, self.stop = 0, stop

    def __call__(self, prior_scale: float = 0.2) -> tuple[Any, Any]:
        self.calls += 1
        if self.calls == self.stop:
            raise KeyboardInterrupt
        start = torch.get_rng_state()
        model = core_model("global", rank=2, num_data=12, prior=dist.Normal(0.0, prior_scale))
        torch.set_rng_state(start)
        return model, MeanField(model, init_scale=(0.05, 0.2))


def run(make: Any, **options: Any) -> TuneResult:
    settings: dict[str, Any] = {"grid": GRID, "max_steps": 2, "optimizer": adam, "progress": False} | options
    return tune(make, TRAIN, HELD, settings.pop("grid"), num_samples=4, narrow=0.0, share=0.0, **settings)


def test_a_posterior_without_a_temperature_is_refused_before_it_is_trained() -> None:
    def make() -> tuple[Any, Any]:
        model = core_model("global", rank=2, num_data=12, head=VariationalLastLayer())
        return model, MeanField(model)

    steps: list[int] = []
    options: dict[str, Any] = {"grid": {"kl_weight": [1.0]}, "on_step": lambda *_: steps.append(1)}
    with refuses(ConfigError, "head.weight", "integrated out"):
        run(make, temperatures=[1.0, 0.25], **options)
    assert steps == []
    assert run(make, temperatures=[1.0], **options).temperature == 1.0
    assert steps == [1, 1]


def test_the_trials_are_runs_of_fit_and_the_best_is_the_lowest() -> None:
    before = torch.get_rng_state()
    grid = {"kl_weight": [1.0], "prior_scale": [0.2, 0.5]}
    best = run(Maker(), grid=grid, temperatures=[1.0, 0.25], seeds=[0, 1])
    assert torch.equal(torch.get_rng_state(), before)
    assert len(best.trials) == 2 * 2 * 2
    assert {trial.steps for trial in best.trials} == {2}
    means: dict[Any, list[float]] = {}
    for trial in best.trials:
        torch.manual_seed(trial.seed)
        model, guide = Maker()(trial.settings["prior_scale"])
        fit(model, guide, TRAIN, max_steps=2, optimizer=adam, progress=False, seed=trial.seed)
        answer = predict(model, guide, HELD, num_samples=4, temperature=trial.temperature)
        assert trial.nll == pytest.approx(-float(answer.log_density.mean()), rel=1e-6)
        assert trial.epistemic == pytest.approx(float(answer.epistemic.mean()), rel=1e-5)
        means.setdefault((*trial.settings.values(), trial.temperature), []).append(trial.nll)
    lowest = min(means, key=lambda key: sum(means[key]))
    assert (*best.settings.values(), best.temperature) == lowest
    assert best.nll == pytest.approx(sum(means[lowest]) / 2)
    first = next(t for t in best.trials if (*t.settings.values(), t.temperature, t.seed) == (*lowest, 0))
    again = predict(best.model, best.guide, HELD, num_samples=4, temperature=best.temperature)
    assert first.nll == pytest.approx(-float(again.log_density.mean()), rel=1e-6)


def test_a_temperature_needs_no_run_of_its_own() -> None:
    make = Maker()
    best = run(make, grid={"kl_weight": [1.0]}, temperatures=[4.0, 1.0, 0.01])
    assert make.calls == 1
    epistemic = [trial.epistemic for trial in best.trials]
    assert epistemic == sorted(epistemic, reverse=True)
    assert [trial.width / best.trials[1].width for trial in best.trials] == pytest.approx([2.0, 1.0, 0.1])


def test_a_sweep_goes_on_where_it_stopped(tmp_path: Path) -> None:
    whole = run(Maker())
    with pytest.raises(KeyboardInterrupt):
        run(Maker(stop=3), folder=tmp_path)
    rest = Maker()
    best = run(rest, folder=tmp_path)
    assert rest.calls <= 2 + 1, "two that were missing, and at most one to give the best back"
    assert [(t.settings, t.nll) for t in best.trials] == [(t.settings, t.nll) for t in whole.trials]
    after = Maker()
    again = run(after, folder=tmp_path)
    assert after.calls == 1
    assert torch.equal(predict(again.model, again.guide, HELD).mean, predict(best.model, best.guide, HELD).mean)
    larger = Maker()
    grown = run(larger, folder=tmp_path, grid={"kl_weight": [0.1, 0.01], "prior_scale": [0.5]}, temperatures=[1.0])
    assert (len(grown.trials), larger.calls <= 2) == (5, True)
    assert json.loads((tmp_path / "trials.json").read_text())["trials"][0]["settings"] == whole.trials[0].settings


def test_trials_that_were_made_otherwise_are_refused(tmp_path: Path) -> None:
    run(Maker(), folder=tmp_path, grid={"kl_weight": [1.0]})
    with refuses(ConfigError, "max_steps", 2, 5, tmp_path):
        run(Maker(), folder=tmp_path, grid={"kl_weight": [1.0]}, max_steps=5)
    (tmp_path / "trials.json").write_text("{")
    with refuses(AdapterFileError, tmp_path / "trials.json"):
        run(Maker(), folder=tmp_path)


def test_what_a_later_call_could_not_recognise_is_refused(tmp_path: Path) -> None:
    """The repr of a function holds an address: all runs would be made again, beside those that are there."""
    grid = {"optimizer": [adam, lambda parameters: torch.optim.SGD(parameters, lr=0.1)]}
    make = Maker()
    with refuses(ConfigError, "optimizer", "address", tmp_path, "folder=None"):
        run(make, folder=tmp_path, grid=grid)
    assert make.calls == 0
    assert len(tune(make, TRAIN, HELD, grid, max_steps=1, narrow=0.0, share=0.0, progress=False).trials) == 2
    classes = {"optimizer": [torch.optim.Adam, torch.optim.SGD]}
    for _ in range(2):
        tune(make, TRAIN, HELD, classes, max_steps=1, narrow=0.0, share=0.0, progress=False, folder=tmp_path)
    assert len(json.loads((tmp_path / "trials.json").read_text())["trials"]) == 2


def test_seeds_of_numpy_are_ints(tmp_path: Path) -> None:
    grid = {"kl_weight": [1.0]}
    best = run(Maker(), folder=tmp_path, grid=grid, seeds=[0, 1, *numpy.arange(2, 3)])
    assert [trial.seed for trial in best.trials] == [0, 1, 2]
    with refuses(ConfigError, "seeds", 0.5):
        read_seeds([0.5])


def test_a_point_is_warned_of_and_a_guide_of_points_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    def narrow() -> tuple[Any, Any]:
        model = core_model("global", rank=2, num_data=12)
        return model, MeanField(model, init_scale=1e-3)

    with warns(PointPosteriorWarning) as texts:
        best = tune(narrow, TRAIN, HELD, {"kl_weight": [0.1]}, max_steps=1)
    assert texts == [best.warning]
    line = capsys.readouterr().err
    for part in ("[1/1] kl_weight 0.1, seed 0: NLL", "nats at temperature 1", "of the prior's"):
        assert part in line

    def points() -> tuple[Any, Any]:
        model = core_model("global", rank=2, num_data=12)
        return model, Delta(model)

    assert tune(points, TRAIN, HELD, {"kl_weight": [0.1]}, max_steps=1, progress=False).warning is None


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"grid": {}, "seeds": []}, ("seeds", "[]")),
        ({"grid": {"kl_weight": []}}, ("kl_weight", "[]")),
        ({"grid": {"kl_weight": [0.1, 0.1]}}, ("kl_weight", "look the same")),
        ({"grid": {"max_steps": [4, 8]}}, ("max_steps", "one budget")),
        ({"grid": {"temperature": [1.0]}}, ("temperatures=",)),
        ({"grid": {"kl_wieght": [1.0]}}, ("kl_wieght", "kl_weight")),
        ({"temperatures": [0.0]}, ("temperature", 0.0)),
        ({"checkpoint": "here"}, ("checkpoint",)),
        ({"grid": {"seed": [1]}}, ("seed",)),
        ({"clip_nrom": 1.0}, ("clip_nrom", "clip_norm")),
    ],
)
def test_sweeps_that_cannot_be(options: dict[str, Any], facts: tuple[Any, ...]) -> None:
    make = Maker()
    with refuses(ConfigError, *facts):
        run(make, **options)
    assert make.calls == 0


def diverging(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e30)


def test_a_run_that_diverges_is_recorded_and_the_search_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = {"optimizer": [diverging, adam]}
    best = run(Maker(), grid=grid, temperatures=[1.0, 0.5], max_steps=3, folder=None, progress=True)
    assert best.settings == {"optimizer": adam}
    lost = [trial for trial in best.trials if trial.failure]
    assert [trial.temperature for trial in lost] == [1.0, 0.5]
    assert all(math.isnan(trial.nll) and "diverging" in trial.settings["optimizer"] for trial in lost)
    assert "step" in lost[0].failure
    assert "failed. " in capsys.readouterr().err.splitlines()[0]
    names = {"prior_scale": [0.2]}
    with refuses(NonFiniteError, "'prior_scale': 0.2", "seed 0", "learning rate"):
        run(Maker(), grid=names, optimizer=diverging, max_steps=3, folder=tmp_path)
    make = Maker()
    with refuses(NonFiniteError, "'prior_scale': 0.2"):  # as it is written, and no run is repeated
        run(make, grid=names, optimizer=diverging, max_steps=3, folder=tmp_path)
    assert make.calls == 0
