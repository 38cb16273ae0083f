"""Checkpoint files: damage is refused, and a failure leaves the file that was there."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters.errors import AdapterFileError, ConfigError, NonFiniteError
from tests.refusals import refuses
from tests.training.parts import Stopping, file_in, pair, run, same, weights


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    run(*pair(), checkpoint=tmp_path, epochs=1)
    whole = file_in(tmp_path).read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    flipped = bytearray(whole)
    flipped[8 + size + 5] ^= 1
    header = json.loads(whole[8 : 8 + size])
    header["__metadata__"]["state"] = header["__metadata__"]["state"].replace('"step", 6', '"step", 7')
    assert '"step", 7' in header["__metadata__"]["state"]
    text = json.dumps(header).encode()
    altered = struct.pack("<Q", len(text)) + text + whole[8 + size :]
    foreign = json.dumps({}).encode()
    damaged: list[tuple[bytes, tuple[object, ...]]] = [
        (whole[:-10], ()),
        (whole[: size // 2], ()),
        (b"", ()),
        (bytes(flipped), ("checksum",)),
        (altered, ("checksum",)),
        (struct.pack("<Q", len(foreign)) + foreign, ()),
    ]
    for data_, facts in damaged:
        file_in(tmp_path).write_bytes(data_)
        with refuses(AdapterFileError, file_in(tmp_path), *facts):
            run(*pair(), checkpoint=tmp_path, epochs=1)


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(*pair(), checkpoint=tmp_path, epochs=1)
    before = file_in(tmp_path).read_bytes()

    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with refuses(AdapterFileError, tmp_path, "No space left on device", "checkpoint="):
        run(*pair(), checkpoint=tmp_path, epochs=2)
    assert file_in(tmp_path).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [file_in(tmp_path).name]


def test_state_that_needs_pickle_is_refused_at_the_start(tmp_path: Path) -> None:
    class Odd(torch.optim.lr_scheduler.LambdaLR):
        def state_dict(self) -> dict[str, Any]:
            return {"what": object()}

    model, guide = pair()
    before = weights(model, guide)
    with refuses(ConfigError, "'/scheduler/what'", "object"):
        run(model, guide, checkpoint=tmp_path, scheduler=lambda o: Odd(o, lambda t: 1.0))
    assert same(weights(model, guide), before)


def test_nan_stops_the_run_but_not_its_checkpoint(tmp_path: Path) -> None:
    model, guide = pair()
    run(model, guide, checkpoint=tmp_path, epochs=1)
    before = file_in(tmp_path).read_bytes()
    with pytest.raises(NonFiniteError):
        run(*pair(), Stopping(1, 2, NonFiniteError("x")), checkpoint=tmp_path, epochs=2)
    assert file_in(tmp_path).read_bytes() == before
