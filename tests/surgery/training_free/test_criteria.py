"""Criteria that do not tighten as an adapter over-fits: units that stay, and the least held-out loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Categorical, predict
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta
from bayes_adapters.surgery._noise_search import Criterion, Search
from bayes_adapters.surgery.training_free import bayesianise
from tests.refusals import refuses, warns
from tests.surgery.training_free.parts import batch, lora


def certain(factor: float) -> Any:
    """A LoRA whose logits are ``factor`` times larger: the surer, the smaller the loss on its own labels."""
    model = lora()
    with torch.no_grad():
        model.head.weight.mul_(factor)
    return model


def found(model: Any, **options: Any) -> Any:
    settings = {"relative_to": "loss", "num_samples": 4, "iterations": 5, "tolerance": 0.05, "widen": 9}
    return bayesianise(model, Delta(model), batch(), **settings | options)[2]


def test_noise_does_not_vanish_where_the_loss_does() -> None:
    """The same adapter, surer and surer of its anchors: relative to the loss, σ_q falls with it."""
    models = [certain(factor) for factor in (2.0, 64.0)]
    published = [found(model) for model in models]
    marginal = [found(model, relative_to="marginal") for model in models]
    assert published[1].baseline < published[0].baseline / 5
    assert published[1].scale < published[0].scale / 100
    assert marginal[1].scale > marginal[0].scale / 2


def test_the_unit_is_the_entropy_of_the_mean_prediction() -> None:
    model = certain(2.0)
    share = predict(model, Delta(model), batch(), mean_only=True).mean.double().mean().item()
    entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
    log = found(model, relative_to="marginal", tolerance=0.1)
    same = found(model, relative_to="nats", tolerance=0.1 * entropy)
    held = batch().targets.double().mean().item()  # type: ignore[union-attr]
    known = found(model, relative_to="marginal", labels="targets", tolerance=0.02)
    assert known.unit == pytest.approx(-held * math.log(held) - (1 - held) * math.log(1 - held), rel=1e-6)
    assert log.unit == pytest.approx(entropy, rel=1e-6)
    assert (same.unit, same.relative_to) == (1.0, "nats")
    assert log.scale == same.scale
    for point in log.points:
        assert point.change == pytest.approx((point.value - log.baseline) / entropy, rel=1e-6)
        assert point.feasible == (point.change <= 0.1)


def test_a_loss_that_falls_is_feasible_where_only_growth_counts() -> None:
    def dip(scale: float | None) -> float:
        return 2.0 - 50.0 * (scale or 0.0)

    assert not Search(dip, Criterion.NLL, 0.1).feasible(0.01)
    assert Search(dip, Criterion.NLL, 0.1, 1.0).feasible(0.01)


@pytest.mark.parametrize("best", [0.002, 0.05, 0.7])
def test_the_least_loss_is_found(best: float) -> None:
    search = Search(lambda s: 3.0 if s is None else 1.0 + math.log(s / best) ** 2, Criterion.LEAST_NLL, 1.0, 1.0)
    assert search.least(1e-3, 1.5e-2, 12, 2) == pytest.approx(best, rel=0.02)
    worse = Search(lambda s: 1.0 if s is None else 1.0 + s, Criterion.LEAST_NLL, 1.0, 1.0)
    with warns(UserWarning, "Held-out"):
        assert worse.least(1e-3, 1.5e-2, 4, 1) == pytest.approx(1e-3 / 15)


def test_held_out_targets_choose_the_noise() -> None:
    """A model that is sure, and wrong on a third of the held-out examples: noise makes its loss less."""
    model = certain(8.0)
    data = batch()
    answers = (predict(model, Delta(model), data, mean_only=True).mean > 0.5).float()
    wrong = torch.arange(len(answers)) % 3 == 0
    held = Batch(data.inputs, torch.where(wrong, 1 - answers, answers))
    options: dict[str, Any] = {"criterion": "least_nll", "labels": "targets", "num_samples": 4, "iterations": 4}
    new, guide, log = bayesianise(model, Delta(model), held, **options)
    assert log.boundary is None
    losses = {p.scale: p.value for p in log.points}
    assert losses[log.scale] == min(losses.values()) < log.baseline
    again = -predict(new, guide, held, num_samples=4).log_density.double().mean().item()
    assert again == pytest.approx(losses[log.scale], rel=1e-4)
    written = log.to_json()
    assert written["criterion"] == "least_nll"
    assert [written[name] for name in ("tolerance", "relative_to", "unit")] == [None, None, None]


def test_options_that_do_not_go_together() -> None:
    model = certain(2.0)
    for options in ({"criterion": "least_nll"}, {"criterion": "least_nll", "labels": "targets", "tolerance": 0.1}):
        with refuses(ConfigError, "least_nll", "labels='targets'"):
            bayesianise(model, Delta(model), batch(), **options)  # type: ignore[arg-type]
    with refuses(ConfigError, "marginal", "accuracy"):
        found(model, criterion="accuracy", relative_to="marginal")
    alike = lora(likelihood=Categorical(3))
    one = Batch(batch().inputs, torch.zeros(24, dtype=torch.long))
    with refuses(ConfigError, "24 anchors", "relative_to='nats'"):
        bayesianise(alike, Delta(alike), one, relative_to="marginal", labels="targets")
    for label in (5, -100):
        one.targets[0] = label  # type: ignore[index]
        with refuses(DataError, "class numbers", label):
            bayesianise(alike, Delta(alike), one, labels="targets")
