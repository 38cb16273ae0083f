"""Five body signals: what the file must hold, and what is said where it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bayes_adapters.errors import DataError, MissingResourceError
from examples.studies.body_signals.data import Signals, load
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
    ("change", "message"),
    [
        (lambda a: a.pop("HR"), "lacks HR; it holds y, subject, BVP"),
        (lambda a: a.pop("subject"), "lacks subject"),
        (
            lambda a: a.update(BVP=a["BVP"][:, :1000]),
            r"'BVP' .* of shape \(108, 1920, 1\).*is float32 of shape \(108, 1",
        ),
        (lambda a: a.update(HR=a["HR"].astype(int)), "'HR' .* must be floating point"),
        (lambda a: a.update(TEMP=a["TEMP"][:-1]), "'TEMP' .*107"),
        (_nan, r"'EDA' .* NaN or infinite in 1 windows, the first of them \[5\]"),
        (_infinite, r"'ACC' .* NaN or infinite in 1 windows, the first of them \[3\]"),
        (lambda a: a.update(y=a["y"] * 2), r"0 \(rest\) or 1 \(stress\); it also holds \[2\]"),
        (lambda a: a.update(y=a["y"].astype(float)), r"'y' .* must be integers of shape \(N,\); it is float64"),
        (lambda a: a.update(subject=a["subject"][:-1]), "108 labels and 107 person numbers"),
        (lambda a: a.update({k: v[:0] for k, v in a.items()}), "has 0 labels"),
    ],
)
def test_a_file_that_cannot_be_used(change: Callable[[dict], object], message: str, tmp_path: Path) -> None:
    content = arrays()
    change(content)
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(DataError, match=message):
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
    with pytest.raises(DataError, match=r"cannot be read as a NumPy \.npz file"):
        load(path)


def test_a_missing_file_says_where_data_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    with pytest.raises(MissingResourceError, match="italha-d/Stress-Predict-Dataset") as caught:
        load()
    for part in (str(tmp_path / "body_signals" / "windows.npz"), "--data", "examples.studies.body_signals.windows"):
        assert part in str(caught.value)
