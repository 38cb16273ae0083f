"""Checkpoints: what a continued run takes over, and when it starts anew."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Bernoulli, Gaussian
from bayes_adapters.errors import DataError
from bayes_adapters.heads import LinearHead
from bayes_adapters.training import fit
from bayes_adapters.training._data import Batches
from tests.refusals import refuses
from tests.training.parts import SETTINGS, WHOLE, Stopping, data, history, pair, run, same, weights


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    model, guide = pair()
    first = run(model, guide, checkpoint=tmp_path, **SETTINGS)
    end = weights(model, guide)
    model, guide = pair()
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    again = run(model, guide, checkpoint=tmp_path, **SETTINGS)
    assert calls == []
    assert again == first
    assert same(weights(model, guide), end)


def test_best_weights_survive_a_resume(tmp_path: Path) -> None:
    """The metric is best in epoch 0; the resumed run ends with that epoch's weights."""
    values = {0: 1.0, 1: 2.0, 2: 3.0}

    def score(model: Any, guide: Any) -> dict[str, float]:
        return {"score": values[len(seen)], "again": float(seen.append(1) or 0)}

    seen: list[int] = []
    model, guide = pair()
    run(model, guide, epochs=1, evaluate=score, monitor="score", checkpoint=tmp_path)
    first = weights(model, guide)
    model, guide = pair()
    result = run(model, guide, epochs=3, evaluate=score, monitor="score", checkpoint=tmp_path)
    assert (result.best_epoch, result.best_value, len(result.history)) == (0, 1.0, 3)
    assert same(weights(model, guide), first)


def test_resume_false_starts_anew(tmp_path: Path) -> None:
    run(*pair(), checkpoint=tmp_path, epochs=1)
    with refuses(RuntimeError, "crash"):
        run(*pair(), Stopping(0, 3, RuntimeError("crash")), checkpoint=tmp_path, epochs=1, resume=False)
    model, guide = pair()
    result = run(model, guide, checkpoint=tmp_path, epochs=2, resume=False)
    expected = pair()
    assert result.steps == 12
    assert history(result) == history(run(*expected, epochs=2))
    assert same(weights(model, guide), weights(*expected))


def test_data_that_shrank_within_the_epoch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(*pair(), Stopping(0, 4, KeyboardInterrupt()), checkpoint=tmp_path)

    class Short(Batches):
        def __iter__(self) -> Any:
            return islice(super().__iter__(), 3)

    with refuses(DataError, 4, "epoch 0", 3, "resume=False"):
        run(*pair(), Short(WHOLE, 4, None, True, 7, False), checkpoint=tmp_path)


def test_likelihood_parameters_are_kept(tmp_path: Path) -> None:
    model, guide = pair(likelihood=Gaussian())
    run(model, guide, checkpoint=tmp_path, epochs=1)
    other, other_guide = pair(likelihood=Gaussian())
    fit(
        other,
        other_guide,
        data(),
        epochs=1,
        progress=False,
        checkpoint=tmp_path,
        optimizer=lambda p: torch.optim.Adam(p, lr=1e-2),
    )
    assert float(other.likelihood.log_scale.detach()) == float(model.likelihood.log_scale.detach()) != 0.0
    assert isinstance(pair()[0].likelihood, Bernoulli)


def test_running_means_of_the_head_are_continued(tmp_path: Path) -> None:
    class Normed(LinearHead):
        def build(self, width: int, likelihood: Any) -> None:
            super().build(width, likelihood)
            self.norm = torch.nn.BatchNorm1d(width)

        def forward(self, features: Any) -> Any:
            return super().forward(self.norm(features))

    def normed() -> tuple[Any, Any]:
        return pair(head=Normed())

    expected = normed()
    run(*expected)
    run(*normed(), checkpoint=tmp_path, epochs=1)
    model, guide = normed()
    run(model, guide, checkpoint=tmp_path)
    assert float(model.head.norm.running_mean.abs().sum()) > 0
    assert same(weights(model, guide), weights(*expected))
