"""Optimiser steps: accumulation, finiteness, reproducibility, and what must stay as it was."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyro
import pytest
import torch
from torch import nn

from bayes_adapters import ELBO, Bernoulli
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, CrossAttention, Delta
from bayes_adapters.models import LoRA
from bayes_adapters.schedules import LinearWarmup
from tests.helpers import bert, fill_B
from tests.refusals import refuses
from tests.training.parts import WHOLE, data, history, pair, run, same, weights


@pytest.mark.parametrize("granularity", ["token", "global"])
@pytest.mark.parametrize("cuts", [[8, 16], [3, 4, 20]])
def test_micro_batches_make_the_step_of_one_batch(granularity: str, cuts: list[int]) -> None:
    """With plain gradient descent weights after a step are its gradient; unequal sizes count by their examples."""

    def step(parts: list[Any]) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
        model, guide = pair(Delta, granularity=granularity, dropout=0.0)
        result = run(
            model, guide, parts, epochs=1, accumulate=len(parts), optimizer=lambda p: torch.optim.SGD(p, lr=1.0)
        )
        assert result.steps == 1
        return weights(model, guide), history(result)

    edges = [0, *cuts, WHOLE.size]
    one, log_one = step([WHOLE])
    many, log_many = step([WHOLE[a:b] for a, b in pairwise(edges)])
    start = weights(*pair(Delta, granularity=granularity, dropout=0.0))
    assert max(float((one[k] - start[k]).abs().max()) for k in one) > 1e-2
    for name in one:
        torch.testing.assert_close(many[name], one[name], atol=1e-6, rtol=1e-5, msg=name)
    for name in ("loss", "nll", "kl", "grad_norm"):
        assert log_many[0][name] == pytest.approx(log_one[0][name], rel=1e-5)


def test_a_short_last_group_is_a_step() -> None:
    """Six batches in groups of four: two steps an epoch."""
    model, guide = pair()
    assert run(model, guide, epochs=3, accumulate=4).steps == 6


def test_loss_is_the_elbos() -> None:
    """One step at learning rate 0: the log holds what ELBO gives with the same weights (Delta: nothing is random)."""
    model, guide = pair(Delta, dropout=0.0)
    result = run(
        model,
        guide,
        [WHOLE],
        epochs=1,
        kl_weight=0.25,
        kl_mode="per_token_mean",
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0),
    )
    expected = ELBO(model, guide, kl_weight=0.25, kl_mode="per_token_mean").terms(WHOLE).log()
    assert {k: result.history[0][k] for k in expected} == pytest.approx(expected)


def test_steps_are_those_of_a_loop_written_by_hand() -> None:
    """Three steps of Adam with Delta and no dropout, where nothing is random."""
    parts = [WHOLE[:8], WHOLE[8:12], WHOLE[12:]]
    model, guide = pair(Delta, dropout=0.0)
    elbo = ELBO(model, guide, kl_weight=LinearWarmup(3))
    optimizer = torch.optim.Adam([*model.trainable_parameters().values(), *guide.parameters()], lr=1e-2)
    for step, batch in enumerate(parts):
        optimizer.zero_grad()
        elbo(batch, step).backward()
        optimizer.step()
    fitted = pair(Delta, dropout=0.0)
    run(*fitted, parts, epochs=1, kl_weight=LinearWarmup(3))
    expected = weights(model, guide)
    for name, value in weights(*fitted).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_same_seed_same_numbers_whatever_the_callers_generator() -> None:
    runs = []
    for noise, seed in ((1, 0), (2, 0), (1, 9)):
        model, guide = pair()
        torch.manual_seed(noise)
        result = run(model, guide, seed=seed)
        runs.append((weights(model, guide), history(result)))
    assert same(runs[0][0], runs[1][0])
    assert runs[0][1] == runs[1][1]
    assert not same(runs[0][0], runs[2][0])


@pytest.mark.parametrize("fails", [False, True])
def test_what_must_stay_as_it_was(fails: bool) -> None:
    """Modes, generators, requires_grad, frozen values and Pyro's store, after a return and after an error."""
    model, guide = pair()
    model.backbone.train()
    model.head.eval()
    guide.eval()
    next(iter(guide.parameters())).requires_grad_(False)
    modules = [*model.modules(), *guide.modules()]
    modes = [m.training for m in modules]
    parameters = [*model.named_parameters(), *guide.named_parameters()]
    grads = [p.requires_grad for _, p in parameters]
    before = weights(model, guide)
    torch.manual_seed(123)
    state = torch.get_rng_state()

    def evaluate(model: Any, guide: Any) -> dict[str, float]:
        assert not any(m.training for m in modules)
        assert not torch.is_grad_enabled()
        if fails:
            raise RuntimeError("stop")
        return {"one": 1.0}

    if fails:
        with refuses(RuntimeError, "stop"):
            run(model, guide, evaluate=evaluate, monitor=None)
    else:
        run(model, guide, evaluate=evaluate, monitor="one")
    assert [m.training for m in modules] == modes
    assert [p.requires_grad for _, p in parameters] == grads
    assert all(p.grad is None for _, p in parameters)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(pyro.get_param_store()) == 0
    after = weights(model, guide)
    frozen = {f"model.{n}" for n, p in model.named_parameters() if not p.requires_grad}
    frozen |= {f"guide.{n}" for n, p in guide.named_parameters() if not p.requires_grad}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not changed & frozen


def test_dropout_is_on_while_training_an_eval_model() -> None:
    logs = []
    for dropout in (0.0, 0.5):
        model, guide = pair(Delta, dropout=dropout)
        model.eval()
        logs.append(run(model, guide, epochs=1).history[0]["nll"])
    assert logs[0] != logs[1]


def test_batch_norm_of_the_frozen_backbone_keeps_its_statistics() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = bert()
            self.config = self.bert.config
            self.norm = nn.BatchNorm1d(self.config.hidden_size)

        def forward(self, **inputs: Any) -> Any:
            out = self.bert(**inputs)
            out.last_hidden_state = self.norm(out.last_hidden_state.mT).mT
            return out

    model, guide = pair(backbone=Normed().train())
    assert model.backbone.norm.training
    before = model.backbone.norm.running_mean.clone()
    run(model, guide, epochs=1)
    assert model.backbone.norm.training
    assert torch.equal(model.backbone.norm.running_mean, before)


def test_clipping_bounds_the_step_and_logs_the_norm_before_it() -> None:
    model, guide = pair(Delta, dropout=0.0)
    before = weights(model, guide)
    result = run(model, guide, [WHOLE], epochs=1, clip_norm=0.01, optimizer=lambda p: torch.optim.SGD(p, lr=1.0))
    after = weights(model, guide)
    moved = torch.cat([(after[k] - before[k]).flatten() for k in before]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)
    assert result.history[0]["grad_norm"] > 0.02


def test_schedules_step_once_an_optimiser_step() -> None:
    """Six batches by two: three steps; KL weights 1/4, 2/4, 3/4 and rates 0.1, 0.05, 0.025."""
    model, guide = pair(Delta)
    seen: list[float] = []
    result = run(
        model,
        guide,
        [WHOLE] * 6,
        epochs=1,
        accumulate=2,
        kl_weight=LinearWarmup(4),
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda t: seen.append(t) or 0.5**t),
    )
    assert result.history[0]["kl_weight"] == pytest.approx(0.5)
    assert result.history[0]["lr"] == pytest.approx((0.1 + 0.05 + 0.025) / 3)
    assert seen == [0, 1, 2, 3]


def test_parameter_groups() -> None:
    model, guide = pair()
    groups = [
        {"params": list(model.trainable_parameters().values()), "lr": 0.0},
        {"params": list(guide.parameters()), "lr": 1e-2},
    ]
    start = weights(model, guide)
    result = run(model, guide, optimizer=torch.optim.Adam(groups))
    end = weights(model, guide)
    changed = {k.split(".")[0] for k in end if not torch.equal(start[k], end[k])}
    assert changed == {"guide"}
    assert (result.history[0]["lr"], result.history[0]["lr_1"]) == (0.0, 0.01)


def test_optimizers_that_would_train_the_wrong_tensors_are_refused() -> None:
    model, guide = pair()
    own = [*model.trainable_parameters().values(), *guide.parameters()]
    with refuses(ConfigError, len(list(guide.parameters())), "guide." + next(iter(dict(guide.named_parameters())))):
        run(model, guide, optimizer=torch.optim.SGD(list(model.trainable_parameters().values()), lr=0.1))
    with refuses(ConfigError, 1, "guide.parameters()"):
        run(model, guide, optimizer=torch.optim.SGD([*own, nn.Parameter(torch.zeros(1))], lr=0.1))
    with refuses(ConfigError, "ReduceLROnPlateau"):
        run(model, guide, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)
    with refuses(ConfigError, "LBFGS", "AdamW"):
        run(model, guide, optimizer=torch.optim.LBFGS)
    other = torch.optim.lr_scheduler.StepLR(torch.optim.SGD(own, lr=0.1), 2)
    with refuses(ConfigError, "StepLR", "scheduler=lambda optimizer: StepLR(optimizer, 100)"):
        run(model, guide, scheduler=lambda _: other)
    for p in own:
        p.requires_grad_(False)
    with refuses(ConfigError, "requires_grad=True"):
        run(model, guide)


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"epochs": None}, ("epochs=…", "max_steps=…")),
        ({"epochs": 0}, ("epochs", 1, 0)),
        ({"epochs": True}, ("epochs", 1, True)),
        ({"accumulate": 0}, ("accumulate", 1, 0)),
        ({"clip_norm": 0.0}, ("clip_norm", 0.0)),
        ({"autocast": torch.float16}, ("torch.float16", "torch.bfloat16")),
        ({"mode": "least"}, ("'least'", "max, min")),
        ({"patience": 1}, ("patience", "validation=…", "monitor='loss'")),
        ({"monitor": "nl"}, ("'nl'", "'nll'")),
    ],
)
def test_settings_that_cannot_work(options: dict[str, Any], facts: tuple[object, ...]) -> None:
    model, guide = pair()
    before = weights(model, guide)
    with refuses(ConfigError, *facts):
        run(model, guide, **options)
    assert same(weights(model, guide), before)


def test_plain_lora_has_no_kl_and_no_scales() -> None:
    model = fill_B(LoRA(bert(), Bernoulli(), rank=2))
    log = run(model, Delta(model)).history[-1]
    assert log["kl"] == 0.0
    assert not {"scale_mean", "attention_entropy"} & log.keys()


def test_scales_and_attention_entropy_are_logged() -> None:
    model, guide = pair(lambda m: CrossAttention(m, context_dim=6, dim=4))
    log = run(model, guide, num_particles=2).history[0]
    assert 0 < log["scale_min"] < log["scale_mean"] < log["scale_max"] < 1
    assert 0 < log["attention_entropy"] < 2.4  # log 10: nine frames and the null one
    assert log["examples_per_second"] > 0


def test_bfloat16_keeps_parameters_in_float32() -> None:
    model, guide = pair(Contextual)
    plain = run(*pair(Contextual), epochs=1).history[0]["nll"]
    half = run(model, guide, epochs=1, autocast=torch.bfloat16).history[0]["nll"]
    assert half == pytest.approx(plain, rel=0.02)
    assert half != plain
    assert {v.dtype for v in weights(model, guide).values() if v.is_floating_point()} == {torch.float32}


def test_training_works_where_gradients_are_off() -> None:
    model, guide = pair()
    with torch.no_grad():
        assert run(model, guide, data(), epochs=1).steps == 6
    with torch.inference_mode(), refuses(ConfigError, "torch.inference_mode()"):
        run(model, guide, data(), epochs=1)
