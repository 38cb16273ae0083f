"""Cut the raw recordings of Stress-Predict-Dataset into the file of windows that the benchmark reads.

    python -m examples.studies.body_signals.windows Stress-Predict-Dataset

The folder is a clone of the GitHub repository ``italha-d/Stress-Predict-Dataset`` (MIT licence). The file is written
where :func:`examples.studies.body_signals.data.load` looks for it: ``body_signals/windows.npz`` in the cache folder.

Of person n two folders are read. ``Processed_data/heartrate_timestamps_labels/P<n>_comb_binary.csv`` has one line per
second: heart rate, Unix time, and 0 (rest) or 1 (stress). ``Raw_data/S<nn>/{BVP,ACC,EDA,TEMP}.csv`` are the sensor's:
Unix time of the first sample, samples per second, then one line per sample. Window k is seconds 30 k … 30 k + 29 of the
first file and the samples of the others at these times; it is left out if it is partly rest and partly stress, or if a
signal does not cover it. Nothing is filtered or scaled.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bayes_adapters.errors import DataError, MissingResourceError
from examples.studies.body_signals.data import MODALITIES, SECONDS, default_path
from examples.studies.user_errors import user_errors

_LABELS = Path("Processed_data", "heartrate_timestamps_labels")
_HEART_RATE = "HR"


def cut(clone: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Return the arrays of the file, and how many windows of all people were left out for which reason.

    Args:
        clone: the repository's folder.

    Raises:
        MissingResourceError: the folder holds no labels, or a person with labels has no recording of some signal.
        DataError: a file is no table of numbers, its seconds do not follow one another, or another sampling rate.
    """
    found = {
        int(match[1]): path
        for path in (clone / _LABELS).glob("P*_comb_binary.csv")
        if (match := re.fullmatch(r"P(\d+)_comb_binary\.csv", path.name))
    }
    if not found:
        raise MissingResourceError(
            f"{clone / _LABELS} holds no P<number>_comb_binary.csv. Name the folder that was cloned from the GitHub "
            "repository italha-d/Stress-Predict-Dataset."
        )
    left_out = {"rest and stress": 0, "not covered by every signal": 0}
    kept: dict[str, list[np.ndarray]] = {name: [] for name in MODALITIES}
    labels: list[int] = []
    people: list[int] = []
    for person, path in sorted(found.items()):
        seconds = _seconds(path)
        signals = {
            name: _recording(clone / "Raw_data" / f"S{person:02d}" / f"{name}.csv", name)
            for name in MODALITIES
            if name != _HEART_RATE
        }
        for first in range(0, len(seconds) - SECONDS + 1, SECONDS):
            window = seconds[first : first + SECONDS]
            if len(set(window[:, 2])) > 1:
                left_out["rest and stress"] += 1
                continue
            parts = _parts(signals, float(window[0, 1]))
            if parts is None:
                left_out["not covered by every signal"] += 1
                continue
            for name, part in (parts | {_HEART_RATE: window[:, :1]}).items():
                kept[name].append(part.astype(np.float32))
            labels.append(int(window[0, 2]))
            people.append(person)
    arrays = {name: np.stack(parts) for name, parts in kept.items() if parts}
    if not arrays:
        raise DataError(f"No window of {SECONDS} s in {clone} has one label and every signal.")
    return arrays | {"y": np.array(labels), "subject": np.array(people)}, left_out


def _parts(signals: Mapping[str, tuple[float, np.ndarray]], start: float) -> dict[str, np.ndarray] | None:
    """Samples of each signal in the window that begins at the Unix time ``start``; None if one does not cover it."""
    parts = {}
    for name, (begins, samples) in signals.items():
        first = round((start - begins) * MODALITIES[name].rate)
        part = samples[max(first, 0) : first + MODALITIES[name].samples]
        if first < 0 or len(part) < MODALITIES[name].samples:
            return None
        parts[name] = part
    return parts


def _table(path: Path, columns: int, skip: int) -> np.ndarray:
    try:
        table = np.loadtxt(path, delimiter=",", skiprows=skip, ndmin=2)
    except FileNotFoundError:
        raise MissingResourceError(f"There is no file {path}. Was the whole repository cloned?") from None
    except ValueError as error:
        raise DataError(f"{path} is no table of numbers with commas between them: {error}") from error
    if table.shape[1] != columns:
        raise DataError(f"{path} must have {columns} columns; it has {table.shape[1]}.")
    return table


def _seconds(path: Path) -> np.ndarray:
    """(seconds, 3): heart rate, Unix time, label."""
    table = _table(path, 3, skip=1)
    gaps = np.flatnonzero(np.diff(table[:, 1]) != 1.0)
    if len(gaps):
        raise DataError(f"The times in {path} must go up by one second per line; they do not after line {gaps[0] + 2}.")
    return table


def _recording(path: Path, name: str) -> tuple[float, np.ndarray]:
    """Unix time of the first sample, and the samples (n, channels)."""
    table = _table(path, MODALITIES[name].channels, skip=0)
    if len(table) < 2 or table[1, 0] != MODALITIES[name].rate:
        given = f"{table[1, 0]:g}" if len(table) > 1 else "no rate"
        raise DataError(
            f"The second line of {path} must be {name}'s {MODALITIES[name].rate} samples per second: {given}."
        )
    return float(table[0, 0]), table[2:]


@user_errors
def main() -> int:
    """Parse the command line, cut, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="folder of the cloned repository")
    parser.add_argument("--out", type=Path, default=default_path(), help="the file to write (default: %(default)s)")
    arguments = parser.parse_args()
    arrays, left_out = cut(arguments.clone)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out, **arrays)  # type: ignore[arg-type]
    people = len(set(arrays["subject"].tolist()))
    print(f"{arguments.out}: {len(arrays['y'])} windows of {people} people, {arrays['y'].mean():.0%} stress")
    print("left out: " + ", ".join(f"{count} {reason}" for reason, count in left_out.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
