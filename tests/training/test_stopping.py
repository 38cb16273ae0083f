"""Ways out of a run: a stop button, SIGTERM, a kill; and what the next run finds."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Wav2Vec2Model

from bayes_adapters import Batch, Bernoulli, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from bayes_adapters.training import _checkpoint
from bayes_adapters.training._checkpoint import decode, encode
from bayes_adapters.training._random import Generators
from tests.refusals import refuses
from tests.test_token_mask import wav2vec
from tests.training.parts import SETTINGS, WHOLE, data, file_in, history, pair, run, same, weights


class StopButton:
    """Raises Ctrl-C after step ``at``, once; draws from every generator at each step and notes the steps."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.steps: list[int] = []

    def __call__(self, step: int, model: Any, guide: Any, optimizer: Any) -> None:
        self.steps.append(step)
        torch.rand(2)
        if step == self.at:
            self.at = -1
            raise KeyboardInterrupt

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@pytest.mark.parametrize("at", [2, 3])
def test_a_stop_button_is_pressed_after_a_step_and_no_step_is_taken_twice(at: int, tmp_path: Path) -> None:
    """Two epochs of two steps; step 2 is the last one of an epoch."""
    options = {"epochs": 2, "accumulate": 3, "checkpoint": tmp_path}
    model, guide = pair()
    button = StopButton(at)
    with pytest.raises(KeyboardInterrupt):
        run(model, guide, on_step=button, **options)
    assert button.steps == list(range(1, at + 1))
    stopped = weights(model, guide)
    button.steps.clear()
    model, guide = pair()
    result = run(model, guide, on_step=button, **options)
    assert button.steps == list(range(at + 1, 5))
    assert result.steps == 4
    other = pair()
    run(*other, on_step=StopButton(-1), **(options | {"checkpoint": None, "epochs": None, "max_steps": at}))
    assert same(stopped, weights(*other))


def test_sigterm_is_ctrl_c_within_a_run_and_what_it_was_after(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        expected = pair()
        log = history(run(*expected, **SETTINGS))
        model, guide = pair()

        def press(step: int, *_: Any) -> None:
            if step == 4:
                os.kill(os.getpid(), signal.SIGTERM)

        def make(parameters: Any) -> torch.optim.Optimizer:
            optimizer = torch.optim.Adam(parameters, lr=1e-2)
            calls = iter(range(1, 100))
            optimizer.register_step_pre_hook(lambda *_: press(next(calls)))
            return optimizer

        with refuses(KeyboardInterrupt, "SIGTERM"):
            run(model, guide, checkpoint=tmp_path, **(SETTINGS | {"optimizer": make}))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        model, guide = pair()
        result = run(model, guide, checkpoint=tmp_path, **SETTINGS)
        assert history(result) == log
        assert same(weights(model, guide), weights(*expected))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_somebody_elses_handler_of_sigterm_stays() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        run(*pair(), epochs=1, on_step=lambda step, *_: os.kill(os.getpid(), signal.SIGTERM) if step == 1 else None)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_killed_run_goes_on_from_its_last_checkpoint_of_steps(tmp_path: Path) -> None:
    """SIGKILL after step 5 of 6 in the first epoch: the next run begins at step 4 and ends as one that ran through."""
    script = f"""
        import os, signal, sys
        from tests.training.parts import pair, run
        def kill(step, *_):
            if step == 5:
                os.kill(os.getpid(), signal.SIGKILL)
        run(*pair(), epochs=1, checkpoint={str(tmp_path)!r}, checkpoint_every=2, on_step=kill)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=os.environ | {"PYTHONPATH": "."})
    assert done.returncode == -signal.SIGKILL
    steps: list[int] = []

    def kill(step: int, *_: Any) -> None:
        steps.append(step)

    kill.__qualname__ = "kill"
    model, guide = pair()
    log = history(run(model, guide, epochs=1, checkpoint=tmp_path, on_step=kill))
    assert steps == [5, 6]
    other = pair()
    assert history(run(*other, epochs=1)) == log
    assert same(weights(model, guide), weights(*other))


def test_checkpoints_every_so_many_steps_need_a_directory() -> None:
    with refuses(ConfigError, "checkpoint_every", "checkpoint="):
        run(*pair(), checkpoint_every=2)


def test_leftovers_of_killed_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    left, own = tmp_path / f".{file_in(tmp_path).name}-{'0f' * 8}", tmp_path / ".checkpoint.safetensors-notes"
    left.write_bytes(b"half")
    own.write_bytes(b"mine")
    run(*pair(), epochs=1, checkpoint=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {file_in(tmp_path).name, own.name}


def test_a_checkpoint_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run(*pair(), epochs=1, checkpoint=tmp_path / "run")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o750
    assert stat.S_IMODE(file_in(tmp_path / "run").stat().st_mode) == 0o640


@pytest.mark.parametrize("where", ["read_bytes", "from_bytes"])
def test_ctrl_c_while_a_good_checkpoint_is_read_is_ctrl_c(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*pair(), epochs=1, checkpoint=tmp_path)
    reads = Path.read_bytes

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    if where == "read_bytes":
        monkeypatch.setattr(Path, "read_bytes", lambda path: interrupt() if path == file_in(tmp_path) else reads(path))
    else:
        monkeypatch.setattr(_checkpoint, "from_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _checkpoint.load(tmp_path, {})


def test_a_run_beside_predictions_in_another_thread() -> None:
    """Each waits for the other: the run's numbers are those of one alone, and so are the predictions'."""
    alone = pair()
    log = history(run(*alone, epochs=4))
    other = pair()
    expected = predict(*other, WHOLE, num_samples=3).probs
    model, guide = pair()
    found: list[Any] = []
    errors: list[BaseException] = []

    def train() -> None:
        try:
            found.append(history(run(model, guide, epochs=4)))
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    predictions = [predict(*other, WHOLE, num_samples=3).probs for _ in range(20)]
    thread.join()
    assert not errors
    assert found == [log]
    assert same(weights(model, guide), weights(*alone))
    assert all(torch.equal(probs, expected) for probs in predictions)


def test_two_runs_in_two_threads() -> None:
    alone = pair()
    log = history(run(*alone))
    found: list[Any] = []
    pairs = [pair(), pair()]
    threads = [threading.Thread(target=lambda p=p: found.append(history(run(*p)))) for p in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [log, log]


class Augmented:
    """``data()`` with frames scaled by numpy's noise; Ctrl-C before batch ``stop``."""

    def __init__(self, stop: int = -1) -> None:
        self.source, self.stop, self.given = data(), stop, 0

    def set_epoch(self, epoch: int) -> None:
        self.source.set_epoch(epoch)

    def __iter__(self) -> Any:
        for batch in self.source:
            if self.given == self.stop:
                raise KeyboardInterrupt
            self.given += 1
            frames = batch.context["audio"]
            noise = float(np.random.rand())  # noqa: NPY002
            yield type(batch)(batch.inputs, batch.targets, {"audio": type(frames)(noise * frames.values, frames.mask)})


def test_noise_that_is_not_torchs_is_seeded_continued_and_given_back(tmp_path: Path) -> None:
    np.random.seed(1)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    expected = pair()
    log = history(run(*expected, Augmented()))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    np.random.rand()  # noqa: NPY002
    with pytest.raises(KeyboardInterrupt):
        run(*pair(), Augmented(stop=9), checkpoint=tmp_path)
    model, guide = pair()
    assert history(run(model, guide, Augmented(), checkpoint=tmp_path)) == log
    assert same(weights(model, guide), weights(*expected))
    assert history(run(*pair(), Augmented(), seed=3)) != log


def test_pythons_generator_is_one_of_them() -> None:
    """By itself: the tests' type checker draws from it, too."""

    def drawn() -> tuple[float, float]:
        return random.random(), random.gauss()

    generators = Generators([torch.device("cpu")])
    with generators.borrowed():
        generators.seed(0, 1)
        first = drawn()
        random.gauss()  # leaves a second normal number behind
        state = generators.get()
        tensors: dict[str, torch.Tensor] = {}
        kept = decode(encode(state, tensors), tensors)  # as a checkpoint holds it
        second = drawn()
        generators.set(*kept)
        assert drawn() == second
        generators.seed(0, 1)
        assert drawn() == first
        generators.seed(0, 2)
        assert drawn() != first


def test_masks_that_wav2vec_draws_with_numpy_follow_the_seed() -> None:
    config = wav2vec().config
    config.apply_spec_augment, config.mask_time_prob, config.mask_time_length = True, 0.5, 1
    targets = torch.tensor([1.0, 0.0])
    batch = Batch({"input_values": torch.randn(2, 66, generator=torch.Generator().manual_seed(0))}, targets)
    logs = []
    for noise, seed in ((1, 0), (2, 0), (2, 5)):
        backbone = Wav2Vec2Model(config)
        backbone.load_state_dict(wav2vec().state_dict(), strict=False)
        backbone.masked_spec_embed.data.copy_(torch.linspace(-2.0, 2.0, config.hidden_size))
        model = LoRA(backbone, Bernoulli(), targets=["q_proj", "v_proj"], rank=2)
        model.head.weight.data = torch.linspace(-1, 1, 16)[None]  # of equal weights a layer norm's output sums to 0
        np.random.seed(noise)  # noqa: NPY002
        result = run(model, Delta(model), [batch], epochs=2, seed=seed, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        logs.append([log["nll"] for log in result.history])
    assert logs[0] == logs[1]
    assert logs[0][0] != logs[0][1]
    assert logs[0] != logs[2]
