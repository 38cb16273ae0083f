"""LoRA learns, an ensemble averages, and a method may change what predicts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from bayes_adapters import predict
from bayes_adapters.errors import ConfigError
from examples.studies.meld.data import Utterances
from examples.studies.meld.experiment import draws, run, train
from examples.studies.meld.methods import METHODS, method
from examples.studies.meld.task import Task
from tests.refusals import refuses
from tests.studies.meld.parts import SETTINGS, Tokenizer, backbone


def test_an_ensemble_averages_members_of_different_seeds(task: Task) -> None:
    trained = train(task, "ensemble", 3, SETTINGS)
    assert len(trained.members) == 2
    whole = draws(trained, task, "test", SETTINGS)
    for number, (model, guide, _) in enumerate(trained.members):
        singly = [Utterances([u], Tokenizer()) for u in task.test.utterances]
        one = torch.cat([predict(model, guide, [s.batch([0])], num_samples=1).probs for s in singly])
        torch.testing.assert_close(whole[number], one, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(whole[0], whole[1], atol=1e-3)
    alone = draws(train(task, "lora", 3, SETTINGS), task, "test", SETTINGS)
    torch.testing.assert_close(whole[:1], alone)  # the first member is LoRA of the same seed


def test_lora_learns_and_a_seed_repeats(task: Task) -> None:
    settings = replace(SETTINGS, epochs=20, lr=3e-2)
    records, rows = run(task, "lora", 0, settings)
    assert records[0].accuracy > 0.85
    assert run(task, "lora", 0, settings)[1] == rows


def test_after_training_a_method_may_change_what_predicts(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []

    def build(parts: Any) -> Any:
        model, guide, training = METHODS["lora"].build(parts)
        assert (parts.num_data, parts.steps) == (60, 8)

        def finish(m: Any, g: Any, batches: Any, dev: Any) -> Any:
            seen.append((len(batches.dataset), len(dev.dataset)))
            with torch.no_grad():
                m.head.weight.zero_()
                m.head.bias.copy_(torch.tensor([0.0, 0.0, math.log(2)]))
            return m, g

        changed = replace(training, finish=finish, ranks_kept=lambda m, g: 1.5)
        return type(METHODS["lora"].build(replace(parts, backbone=backbone())))(model, guide, changed)

    monkeypatch.setitem(METHODS, "changed", replace(METHODS["lora"], build=build))
    records, rows = run(task, "changed", 0, SETTINGS)
    assert seen == [(60, 20)]
    assert {round(r.p_positive, 5) for r in rows} == {0.5}
    assert records[0].ranks_kept == 1.5


def test_unknown_method() -> None:
    with refuses(ConfigError, "method", "'c-lorra'", "'c-lora'"):
        method("c-lorra")
