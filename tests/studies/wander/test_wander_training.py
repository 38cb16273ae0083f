"""The knob is chosen by validation, gradients are measured, and records say what the gate is worth."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bayes_adapters import ELBO
from bayes_adapters.guides import Delta
from examples.studies.wander import training
from examples.studies.wander.experiment import evaluate
from examples.studies.wander.training import Gradients, closed, gates, train, train_once
from examples.studies.wander.variants import VARIANTS
from tests.studies.wander.parts import SETTINGS, Product

PROBLEM = Product("product")


def test_the_rate_of_the_lowest_validation_nll_is_kept_and_everything_recorded() -> None:
    variant = replace(VARIANTS["beside"], gate=1.0)
    fitted = train(PROBLEM, variant, 0)
    each = [train_once(PROBLEM, variant, 0, rate) for rate in SETTINGS.rates]
    assert fitted.validation_nll == min(one.validation_nll for one in each)
    assert {one.validation_nll for one in each if one.rate == fitted.rate} == {fitted.validation_nll}
    records, rows = evaluate(PROBLEM, variant, fitted, "product.beside", 0)
    assert [r.condition for r in records] == ["all", "without-1"]
    first = records[0]
    assert (first.rate, first.parameters) == (fitted.rate, fitted.parameters)
    assert all(math.isfinite(v) for v in (first.feature, first.token, first.down, first.gate_gradient, first.head))
    assert math.isnan(first.depth_ratio)
    assert first.gate > 0.5
    assert first.closed_nll != first.nll
    assert len(rows) == 3 * len(PROBLEM.test(True, "all").names)


def test_a_closed_gate_is_opened_again() -> None:
    model = VARIANTS["every-stream"].build(PROBLEM, PROBLEM.encoders(True))
    gates(model)[0].data.fill_(0.3)
    with closed(model):
        assert not gates(model)[0].any()
    assert bool((gates(model)[0] == 0.3).all())


def test_gradients_are_those_of_the_loss_by_group() -> None:
    torch.manual_seed(0)
    model = VARIANTS["beside-gate-1"].build(PROBLEM, PROBLEM.encoders(True))
    gates(model)[0].data.fill_(1.0)
    guide, batch = Delta(model), PROBLEM.validation(True)[0]
    loss = ELBO(model, guide, kl_weight=0.0)
    heard = Gradients(model, guide)
    loss(batch).backward()
    norms = heard.norms()
    token = [p for name, p in guide.named_parameters() if "token" in name]
    assert norms["token"] == pytest.approx(math.sqrt(sum(float(p.grad.square().sum()) for p in token)))
    gate = gates(model)[0].grad
    assert gate is not None
    assert norms["gate"] == pytest.approx(float(gate.norm()))
    loss(batch).backward()
    assert heard.norms() == norms  # it has stopped listening


def test_a_warm_start_begins_where_the_first_half_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    take_over = training.take_over

    def spy(model: torch.nn.Module, start: torch.nn.Module) -> None:
        take_over(model, start)  # type: ignore[arg-type]
        taken.append(torch.equal(model.head.weight[:, :128], start.head.weight))  # type: ignore[union-attr,index]

    monkeypatch.setattr(training, "take_over", spy)
    train_once(PROBLEM, VARIANTS["beside-warm"], 0, 1e-3)
    assert taken == [True]
