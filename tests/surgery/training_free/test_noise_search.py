"""The search for the noise's size finds the tolerance's edge from below."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from bayes_adapters import predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta
from bayes_adapters.surgery._noise_search import Criterion, Search
from bayes_adapters.surgery.training_free import bayesianise
from tests.refusals import refuses, warns
from tests.surgery.training_free.parts import batch, lora, make


def staircase(edge: float, base: float = 2.0) -> Any:
    """A loss that leaves a tolerance of 0.1 where σ exceeds ``edge``."""
    return lambda scale: base if scale is None else base * (1.0 + 0.1 * scale / edge)


@pytest.mark.parametrize("edge", [0.002, 0.01, 0.4, 2e-5])
def test_the_search_finds_the_boundary_from_below(edge: float) -> None:
    search = Search(staircase(edge), Criterion.NLL, 0.1)
    low, high = search.run(1e-3, 1.5e-2, 12, 4)
    assert high is not None
    assert low <= edge < high
    assert high / low < 1.001
    assert max(p.scale for p in search.points if p.feasible) == low
    assert min(p.scale for p in search.points if not p.feasible) == high


def test_the_search_without_an_end() -> None:
    search = Search(staircase(100.0), Criterion.NLL, 0.1)
    with warns(UserWarning, 0.225, 0.1, "high="):
        assert search.run(1e-3, 1.5e-2, 5, 1) == (pytest.approx(0.225), None)
    assert len(search.points) == 2
    search = Search(staircase(1e-9), Criterion.NLL, 0.1)
    with refuses(ConfigError, 0.001, 0.1, "low="):
        search.run(1e-3, 1.5e-2, 5, 0)
    with refuses(ConfigError, "4.44444e-06", 0.1, "low="):
        search.run(1e-3, 1.5e-2, 5, 2)
    nan = Search(lambda s: 1.0 if s is None or s < 0.004 else float("nan"), Criterion.NLL, 0.1)
    low, high = nan.run(1e-3, 1.5e-2, 12, 4)
    assert low < 0.004 <= (high or 0), "a loss that is not a number is infeasible"
    with refuses(ConfigError, "nll", 0, "labels='targets'"):
        Search(lambda _: 0.0, Criterion.NLL, 0.1)


@pytest.mark.parametrize("criterion", ["nll", "accuracy"])
@pytest.mark.parametrize("labels", ["model", "targets"])
def test_the_chosen_scale_is_feasible_and_the_one_above_is_not(criterion: str, labels: str) -> None:
    model = lora()
    data = [batch(40)[:24], batch(40)[24:]]
    options: dict[str, Any] = {"criterion": criterion, "relative_to": "loss", "labels": labels, "num_samples": 6}
    new, guide, log = bayesianise(model, Delta(model), iter(data), tolerance=0.05, iterations=5, **options)
    plain = predict(new, guide, data, mean_only=True)
    own = (plain.probs > 0.5).float()
    chosen = torch.cat([b.targets for b in data if b.targets is not None]) if labels == "targets" else own
    parts = [replace(b, targets=t) for b, t in zip(data, chosen.split([24, 16]), strict=True)]

    def value(scale: float | None) -> float:
        if scale is not None:
            guide.rescale(scale)
        found = predict(new, guide, parts, num_samples=6, mean_only=scale is None)
        if criterion == "accuracy":
            return float(((found.probs > 0.5) == (chosen > 0.5)).double().mean())
        return -float(torch.where(chosen > 0.5, found.probs, 1 - found.probs).double().log().mean())

    base = value(None)
    assert log.baseline == pytest.approx(base, rel=1e-4)
    assert guide.scale == pytest.approx(log.scale, rel=1e-6)
    assert log.boundary is not None
    assert abs(value(log.scale) - base) / base <= 0.05 + 1e-5
    assert abs(value(log.boundary) - base) / base > 0.05 - 1e-5
    assert log.boundary / log.scale < 1.2
    assert (log.num_anchors, log.criterion, log.labels) == (40, criterion, labels)
    assert log.to_json()["points"][0]["scale"] == 0.015


def test_the_search_is_deterministic_and_leaves_the_generator_alone() -> None:
    model = lora()
    state = torch.get_rng_state()
    first = make(model)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = make(model, chunk_size=3)
    assert again[2].scale == pytest.approx(first[2].scale, rel=1e-6)
    assert make(model, seed=1)[2].points != first[2].points


def test_the_default_tolerances() -> None:
    model = lora()
    assert make(model, tolerance=None)[2].tolerance == 0.003
    made = make(model, tolerance=None, relative_to=None)[2]
    assert (made.relative_to, made.tolerance) == ("marginal", 0.05)
    assert make(model, tolerance=None, criterion="accuracy")[2].tolerance == 0.01


def test_anchors_need_no_targets() -> None:
    model = lora()
    options: dict[str, Any] = {"relative_to": "loss", "tolerance": 0.02, "num_samples": 4, "iterations": 4}
    with_targets, without = make(model), bayesianise(model, Delta(model), batch().without_targets(), **options)
    assert with_targets[2] == without[2]
