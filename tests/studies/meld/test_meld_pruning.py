"""BayesLoRA 2026 takes ranks out half way, and says how many are left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bayes_adapters.surgery._ranks import shrink
from examples.studies.meld import methods
from examples.studies.meld.experiment import run, train
from examples.studies.meld.methods import METHODS, Build
from examples.studies.meld.task import Task
from tests.studies.meld.parts import SETTINGS, backbone


def test_a_finished_run_with_pruning_is_read_again(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its checkpoint, with the ranks that were left and not those it began with."""
    monkeypatch.setattr(methods, "PRUNE_THRESHOLD", -50.0)
    before, again = (run(task, "bayeslora-2026", 0, SETTINGS, tmp_path) for _ in range(2))
    assert before[1] == again[1]
    assert before[0][0].ranks_kept == again[0][0].ranks_kept == 1


@pytest.mark.parametrize(("threshold", "kept"), [(50.0, 2.0), (-50.0, 1.0)])
def test_ranks_are_taken_out_once_half_way(
    task: Task, monkeypatch: pytest.MonkeyPatch, threshold: float, kept: float
) -> None:
    monkeypatch.setattr(methods, "PRUNE_THRESHOLD", threshold)
    settings = replace(SETTINGS, epochs=2)
    records, _ = run(task, "bayeslora-2026", 0, settings)
    assert {r.ranks_kept for r in records} == {kept}
    model, guide, training = train(task, "bayeslora-2026", 0, settings).members[0]
    schedule: Any = training.on_step
    assert [record.step for record in schedule.records] == [8]  # of 2 · 8 steps
    assert schedule.records[0].after == model.ranks
    assert training.ranks_kept is not None
    assert training.ranks_kept(model, guide) == kept


def test_the_mean_of_ranks_that_differ() -> None:
    parts = Build(backbone(), num_data=60, steps=16, rank=4)
    model, guide, training = METHODS["bayeslora-2026"].build(parts)
    first, *others = model.layers
    shrink(model, guide, {first: 1, others[0]: 2})
    assert training.ranks_kept is not None
    assert training.ranks_kept(model, guide) == (1 + 2 + 4 + 4) / 4
