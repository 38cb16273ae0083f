"""From a sensor's files to windows: which samples, which label, what is left out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bayes_adapters.errors import DataError, MissingResourceError
from examples.studies.body_signals import windows
from examples.studies.body_signals.data import MODALITIES, load
from tests.refusals import refuses

START = 1_600_000_000
LABELS = [0] * 65 + [1] * 60 + [0] * 10
"""Windows of 30 s: rest, rest, rest and stress, stress; the last 15 s are none."""


def clone(folder: Path, people: tuple[int, ...] = (2, 11), **changed: Any) -> Path:
    """Recordings whose samples are seconds since :data:`START`; the sensor starts 10 s before the heart rate."""
    (folder / "Processed_data" / "heartrate_timestamps_labels").mkdir(parents=True)
    for person in people:
        lines = [f"{100 * person + i},{START + i}.0,{label}" for i, label in enumerate(LABELS)]
        path = folder / "Processed_data" / "heartrate_timestamps_labels" / f"P{person}_comb_binary.csv"
        path.write_text("\n".join(["HR,Time(sec),Label", *lines]), encoding="utf-8")
        raw = folder / "Raw_data" / f"S{person:02d}"
        raw.mkdir(parents=True)
        for name, modality in MODALITIES.items():
            if name == "HR":
                continue
            until = changed.get(name, 140)
            times = np.arange(-10 * modality.rate, until * modality.rate) / modality.rate
            head = [START - 10, modality.rate]
            column = np.concatenate([head, times])
            rows = np.stack([column] * modality.channels, 1)
            rows[2:] += np.arange(modality.channels)
            np.savetxt(raw / f"{name}.csv", rows, delimiter=",", fmt="%.6f")
    return folder


def test_a_window_has_the_samples_of_its_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "made" / "windows.npz"
    monkeypatch.setattr(sys, "argv", ["windows", str(clone(tmp_path / "clone")), "--out", str(out)])
    assert windows.main() == 0
    signals = load(out)
    assert signals.people.tolist() == [2, 2, 2, 11, 11, 11]
    assert signals.labels.tolist() == [0, 0, 1] * 2
    for name, modality in MODALITIES.items():
        if name == "HR":
            continue
        for window, first in enumerate([0, 30, 90, 0, 30, 90]):
            times = np.arange(modality.samples) / modality.rate + first
            expected = times[:, None] + np.arange(modality.channels)
            assert np.allclose(signals.values[name][window].numpy(), expected, atol=1e-4), name
    assert signals.values["HR"][:, 0, 0].tolist() == [200, 230, 290, 1100, 1130, 1190]
    assert signals.values["HR"].shape == (6, 30, 1)


def test_a_window_that_a_signal_does_not_cover_is_left_out(tmp_path: Path) -> None:
    arrays, left_out = windows.cut(clone(tmp_path, people=(3,), EDA=119))
    assert arrays["y"].tolist() == [0, 0]
    assert left_out == {"rest and stress": 1, "not covered by every signal": 1}
    assert windows.cut(clone(tmp_path / "whole", people=(3,), EDA=120))[0]["y"].tolist() == [0, 0, 1]


def test_a_sensor_that_starts_late_covers_no_early_window(tmp_path: Path) -> None:
    path = clone(tmp_path, people=(3,)) / "Raw_data" / "S03" / "TEMP.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([str(START + 1), *lines[1:]]), encoding="utf-8")
    assert windows.cut(tmp_path)[0]["y"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("file", "old", "new", "kind", "facts"),
    [
        ("Raw_data/S02/BVP.csv", "64.000000\n", "32.000000\n", DataError, ("BVP", 64, 32)),
        ("Raw_data/S02/ACC.csv", ",", ";", DataError, ("ACC.csv",)),
        ("Raw_data/S02/EDA.csv", "\n", ",1\n", DataError, ("EDA.csv", 1, 2)),
        ("Raw_data/S02/TEMP.csv", None, None, MissingResourceError, ("TEMP.csv",)),
        (
            "Processed_data/heartrate_timestamps_labels/P2_comb_binary.csv",
            f"{START + 7}.0",
            f"{START + 8}.0",
            DataError,
            ("line 8",),
        ),
    ],
)
def test_files_that_are_not_what_they_should_be(
    file: str, old: str | None, new: str, kind: type[Exception], facts: tuple[object, ...], tmp_path: Path
) -> None:
    path = clone(tmp_path, people=(2,)) / file
    if old is None:
        path.unlink()
    else:
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new), encoding="utf-8")
    with refuses(kind, *facts):
        windows.cut(tmp_path)


def test_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["windows", str(tmp_path)])
    assert windows.main() == 2
    assert "italha-d/Stress-Predict-Dataset" in capsys.readouterr().err
