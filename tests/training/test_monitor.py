"""The log, the best epoch, early stopping, and what a person sees."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import predict
from bayes_adapters.errors import ConfigError, MissingResourceError
from tests.refusals import refuses
from tests.training.parts import WHOLE, history, pair, run, same, weights

STEP = {"epoch", "step", "loss", "nll", "kl", "kl_over_nll", "kl_weight", "lr", "grad_norm", "examples_per_second"}


class Script:
    """An ``evaluate`` that returns given scores and keeps each epoch's weights."""

    def __init__(self, *scores: float) -> None:
        self.scores: Iterator[float] = iter(scores)
        self.kept: list[dict[str, torch.Tensor]] = []

    def __call__(self, model: Any, guide: Any) -> dict[str, float]:
        self.kept.append(weights(model, guide))
        return {"score": next(self.scores)}


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 2)])
def test_the_best_epochs_weights_come_back(mode: str, best: int) -> None:
    script = Script(3.0, 1.0, 5.0, 2.0)
    model, guide = pair()
    result = run(model, guide, epochs=4, evaluate=script, monitor="score", mode=mode)
    assert result.best_epoch == best
    assert result.best_value == result.history[best]["score"]
    assert same(weights(model, guide), script.kept[best])
    assert result.stopped == "completed"
    script = Script(3.0, 1.0, 5.0, 2.0)
    model, guide = pair()
    run(model, guide, epochs=4, evaluate=script, monitor="score", mode=mode, restore_best=False)
    assert same(weights(model, guide), script.kept[3])


@pytest.mark.parametrize(("patience", "epochs", "best"), [(1, 3, 2.0), (2, 8, 0.5)])
def test_patience_counts_epochs_without_a_better_value(patience: int, epochs: int, best: float) -> None:
    """An equal value is not better, and NaN never is."""
    script = Script(3.0, 2.0, 2.0, 1.0, 1.5, 0.5, float("nan"), 1.0)
    result = run(*pair(), epochs=20, evaluate=script, monitor="score", patience=patience)
    assert (len(result.history), result.stopped) == (epochs, "early_stopping")
    assert result.best_value == best


def test_patience_survives_a_resume(tmp_path: Path) -> None:
    script = Script(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    options = {"evaluate": script, "monitor": "score", "checkpoint": tmp_path}
    run(*pair(), epochs=2, **options)
    result = run(*pair(), epochs=9, patience=3, **options)
    assert (len(result.history), result.stopped, result.best_epoch) == (4, "early_stopping", 0)


def test_validation_is_the_posterior_predictive_over_examples() -> None:
    """Unequal batches; the value is predict's over all 22 examples."""
    model, guide = pair()
    result = run(model, guide, epochs=1, validation=[WHOLE[:3], WHOLE[3:]], num_samples=5, seed=2)
    density = predict(model, guide, WHOLE, num_samples=5, seed=2).log_density
    assert density is not None
    assert result.history[0]["val_nll"] == pytest.approx(-float(density.mean()), rel=1e-6)
    assert result.best_value == result.history[0]["val_nll"]
    assert set(result.history[0]) == STEP | {"val_nll", "scale_mean", "scale_min", "scale_max"}


def test_validation_does_not_change_training() -> None:
    with_it, without = pair(), pair()
    run(*with_it, validation=[WHOLE], restore_best=False)
    run(*without)
    assert same(weights(*with_it), weights(*without))


def test_nothing_to_watch_keeps_the_last_weights() -> None:
    result = run(*pair())
    assert (result.best_epoch, result.best_value) == (None, None)
    watched = run(*pair(), monitor="loss")
    assert watched.best_value == min(log["loss"] for log in watched.history)


def test_an_unknown_metric_lists_what_exists() -> None:
    with refuses(ConfigError, "monitor='val_acc'", "loss, nll", "validation=…"):
        run(*pair(), monitor="val_acc")
    with refuses(ConfigError, "monitor='val_nll'", "score"):
        run(*pair(), evaluate=Script(1.0), monitor="val_nll")
    with refuses(ConfigError, "monitor='val_nll'", "validation=…"):
        run(*pair(), monitor="val_nll")


def test_evaluate_alone_is_logged_and_watches_nothing() -> None:
    result = run(*pair(), evaluate=Script(1.0, 2.0))
    assert [log["score"] for log in result.history] == [1.0, 2.0]
    assert result.best_epoch is None
    with refuses(ConfigError, "patience", "validation=…", "monitor='loss'"):
        run(*pair(), evaluate=Script(1.0), patience=1)


@pytest.mark.parametrize("monitor", ["auto", None])
def test_the_highest_value_is_that_of_a_named_metric(monitor: str | None) -> None:
    with refuses(ConfigError, "mode='max'", "monitor="):
        run(*pair(), evaluate=Script(1.0, 2.0), validation=[WHOLE[:6]], monitor=monitor, mode="max")


def test_what_evaluate_may_return() -> None:
    cases: list[tuple[Any, tuple[object, ...]]] = [
        ({"nll": 1.0}, ("'nll'", "'my_nll'")),
        (3.0, ("float",)),
        ({"x": "high"}, ("'x'", "high")),
    ]
    for value, facts in cases:
        with refuses(ConfigError, *facts):
            run(*pair(), evaluate=lambda *_, value=value: value, monitor=None)
    result = run(*pair(), evaluate=lambda *_: {"x": torch.tensor(2.0)}, monitor="x")
    assert result.best_value == 2.0


def test_an_epochs_log_weighs_examples() -> None:
    """At learning rate 0 the epoch's nll is the whole data set's, although the last batch is small."""
    from bayes_adapters.guides import Delta

    def still(p: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(p, lr=0.0)

    one = run(*pair(Delta, dropout=0.0), [WHOLE], epochs=1, optimizer=still).history[0]
    cut = run(*pair(Delta, dropout=0.0), [WHOLE[:20], WHOLE[20:]], epochs=1, optimizer=still).history[0]
    assert cut["nll"] == pytest.approx(one["nll"], rel=1e-5)
    assert cut["kl_over_nll"] == pytest.approx(cut["kl"] / cut["nll"])


def test_log_every_spares_the_scales() -> None:
    every, first = run(*pair(), log_every=1), run(*pair(), log_every=100)
    assert every.history[0]["scale_mean"] != first.history[0]["scale_mean"]
    drop = {"scale_mean", "scale_min", "scale_max"}
    a, b = ([{k: v for k, v in log.items() if k not in drop} for log in history(r)] for r in (every, first))
    assert a == b


def test_lines_where_stderr_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    run(*pair(), progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split("  ")[:2] for line in err.splitlines()] == [["epoch 1/2", "step 6"], ["epoch 2/2", "step 12"]]
    assert "nll 0." in err
    assert "\x1b" not in err
    run(*pair(), progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    run(*pair(), progress=True)
    assert "epoch 2/2" in screen.getvalue()
    assert "6/6" in screen.getvalue()


def test_tensorboard_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with refuses(MissingResourceError, "tensorboard", "pip install '.[tensorboard]'"):
        run(*pair(), tensorboard=tmp_path)


def test_tensorboard_gets_steps_and_epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a writer that keeps what it is given, in the place of the optional package's."""
    import types

    wrote: list[tuple[str, float, int]] = []
    closed: list[bool] = []

    class Writer:
        def __init__(self, directory: str, purge_step: int | None) -> None:
            assert directory == str(tmp_path)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            wrote.append((name, value, step))

        def close(self) -> None:
            closed.append(True)

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    result = run(*pair(), tensorboard=tmp_path, log_every=4)
    assert [step for name, _, step in wrote if name == "train/nll"] == [1, 5, 7, 11]
    assert [(v, s) for n, v, s in wrote if n == "epoch/nll"] == [
        (log["nll"], int(log["step"])) for log in result.history
    ]
    assert closed == [True]
