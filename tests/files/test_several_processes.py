"""Two processes save to one folder while a third reads it."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from bayes_adapters import Bernoulli, load, save
from bayes_adapters.errors import AdapterFileError
from bayes_adapters.files import _lock
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from tests.helpers import bert
from tests.refusals import refuses, warns

WRITER = """
import sys
import torch
from bayes_adapters import Bernoulli, save
from bayes_adapters.files.peft import to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from tests.helpers import bert

folder, start, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
models = []
for number in range(start, start + 3):
    model = LoRA(bert(), Bernoulli(), rank=2, alpha=float(number))
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.fill_(float(number))
    models.append((model, Delta(model)))
print("ready", flush=True)
sys.stdin.readline()
for round in range(rounds):
    save(folder + "/ours", *models[round % 3])
    to_peft(folder + "/peft", models[round % 3][0])
"""


def check_whole(model: LoRA) -> None:
    """Every number of it comes from one save: B is what alpha is."""
    for parameter in model.trainable_parameters().values():
        assert (parameter == model.alpha).all(), (model.alpha, parameter.flatten()[0])


@pytest.mark.filterwarnings("error::UserWarning")
def test_writers_wait_for_each_other_and_a_reader_sees_whole_saves(tmp_path: Path) -> None:
    """13 of 120 rounds left a folder that nothing could read, and 4 of 130 readers were refused."""
    model = LoRA(bert(), Bernoulli(), rank=2, alpha=1.0)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.fill_(1.0)
    save(tmp_path / "ours", model, Delta(model))
    to_peft(tmp_path / "peft", model)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen([*command, start, "25"], **pipes) for start in ("1", "11")]  # type: ignore[call-overload]
    try:
        for writer in writers:
            assert writer.stdout.readline() == "ready\n", writer.stderr.read()
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        reads = 0
        while any(writer.poll() is None for writer in writers) or not reads:
            check_whole(load(tmp_path / "ours", bert())[0])  # type: ignore[arg-type]
            check_whole(from_peft(tmp_path / "peft", bert(), Bernoulli()))
            reads += 1
    finally:
        for writer in writers:
            errors = writer.communicate()[1]
            assert writer.returncode == 0, errors
    check_whole(load(tmp_path / "ours", bert())[0])  # type: ignore[arg-type]
    check_whole(from_peft(tmp_path / "peft", bert(), Bernoulli()))
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert not [p.name for p in (tmp_path / "peft").iterdir() if p.name.startswith(".")]


def test_a_folder_that_another_one_is_replacing_is_no_folder_of_other_things(tmp_path: Path) -> None:
    """The old configuration is taken away before the new weights are put in place."""
    model = LoRA(bert(), Bernoulli(), rank=2)
    to_peft(tmp_path, model)
    config = (tmp_path / "adapter_config.json").read_bytes()
    with _lock.locked(tmp_path):
        (tmp_path / "adapter_config.json").unlink()
        failed: list[Exception] = []

        def write() -> None:
            try:
                to_peft(tmp_path, model)
            except AdapterFileError as error:
                failed.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        writer.join(0.5)
        assert writer.is_alive(), failed
        (tmp_path / "adapter_config.json").write_bytes(config)
    writer.join(60)
    assert not failed
    from_peft(tmp_path, bert(), Bernoulli())
    (tmp_path / "adapter_config.json").unlink()
    with refuses(AdapterFileError, str(tmp_path), "adapter_model.safetensors"):
        to_peft(tmp_path, model)


def test_a_lock_file_of_a_dead_process_holds_nobody_up(tmp_path: Path) -> None:
    model = LoRA(bert(), Bernoulli(), rank=2)
    (tmp_path / _lock.LOCK).write_text("left behind")
    save(tmp_path, model, Delta(model))
    load(tmp_path, bert())
    assert not (tmp_path / _lock.LOCK).exists()


def test_a_process_that_hangs_in_a_save_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lock, "_PATIENCE", 0.2)
    model = LoRA(bert(), Bernoulli(), rank=2)
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with _lock.locked(tmp_path):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    try:
        with refuses(AdapterFileError, str(tmp_path)):
            save(tmp_path, model, Delta(model))
    finally:
        leave.set()
        thread.join()
    save(tmp_path, model, Delta(model))


def test_a_reader_waits_for_a_writer_without_a_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it reads has changed meanwhile, until it holds the lock; where none can be made it says so."""
    held = []

    def read() -> str:
        held.append((tmp_path / _lock.LOCK).exists())
        (tmp_path / "a").write_text("x" * len(held))
        if not held[-1]:
            raise AdapterFileError("torn")
        return "whole"

    assert _lock.steady(tmp_path, ["a"], read) == "whole"
    assert held == [False] * _lock._ATTEMPTS + [True]

    def refused(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(_lock.os, "open", refused)
    with refuses(AdapterFileError, str(tmp_path), "Permission denied"):
        _lock.steady(tmp_path, ["a"], read)


def test_a_file_system_without_locks_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(_lock, "_lock", no_locks)
    model = LoRA(bert(), Bernoulli(), rank=2)
    with warns(UserWarning, str(tmp_path), "Function not implemented"):
        save(tmp_path, model, Delta(model))
    load(tmp_path, bert())
