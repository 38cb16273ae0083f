"""Five body signals: what the file must hold, and what is said where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bayes_adapters.errors import DataError, MissingResourceError
from examples.studies.body_signals.data import Signals, load
from tests.refusals import refuses
from tests.studies.body_signals.parts import PEOPLE, WINDOWS, arrays


def test_what_is_in_the_file_is_what_is_loaded(signals: Signals) -> None:
    assert len(signals) == PEOPLE * WINDOWS
    assert {name: tuple(v.shape[1:]) for name, v in signals.values.items()} == {
        "BVP": (1920, 1),
        "ACC": (960, 3),
        "EDA": (120, 1),
        "TEMP": (120, 1),
        "HR": (30, 1),
    }
    assert torch.equal(signals.values["ACC"], torch.from_numpy(arrays()["ACC"]))
    assert signals.labels.sum() == PEOPLE * 4


def _nan(a: dict[str, np.ndarray]) -> None:
    a["EDA"][5, 7] = np.nan


def _infinite(a: dict[str, np.ndarray]) -> None:
    a["ACC"][3, 0, 1] = np.inf


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (lambda a: a.pop("HR"), ("HR", "y, subject, BVP")),
        (lambda a: a.pop("subject"), ("subject",)),
        (
            lambda a: a.update(BVP=a["BVP"][:, :1000]),
            ("'BVP'", "(108, 1920, 1)", "(108, 1000, 1)"),
        ),
        (lambda a: a.update(HR=a["HR"].astype(int)), ("'HR'", "int64")),
        (lambda a: a.update(TEMP=a["TEMP"][:-1]), ("'TEMP'", 107, 108)),
        (_nan, ("'EDA'", 1, [5])),
        (_infinite, ("'ACC'", 1, [3])),
        (lambda a: a.update(y=a["y"] * 2), (0, 1, [2])),
        (lambda a: a.update(y=a["y"].astype(float)), ("'y'", "(N,)", "float64")),
        (lambda a: a.update(subject=a["subject"][:-1]), (108, 107)),
        (lambda a: a.update({k: v[:0] for k, v in a.items()}), ("0 labels",)),
    ],
)
def test_a_file_that_cannot_be_used(
    change: Callable[[dict], object], facts: tuple[object, ...], tmp_path: Path
) -> None:
    content = arrays()
    change(content)
    np.savez(tmp_path / "bad.npz", **content)
    with refuses(DataError, *facts):
        load(tmp_path / "bad.npz")


@pytest.mark.parametrize("kind", ["empty", "text", "npy", "pickle"])
def test_what_is_no_such_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    if kind == "npy":
        with path.open("wb") as handle:
            np.save(handle, np.zeros(3))
    elif kind == "pickle":
        np.savez(path, y=np.array([{}], dtype=object))
    else:
        path.write_bytes(b"" if kind == "empty" else b"not an archive")
    with refuses(DataError, path, ".npz"):
        load(path)


def test_a_missing_file_says_where_data_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    path, command = tmp_path / "body_signals" / "windows.npz", "examples.studies.body_signals.windows"
    with refuses(MissingResourceError, "italha-d/Stress-Predict-Dataset", path, "--data", command):
        load()
