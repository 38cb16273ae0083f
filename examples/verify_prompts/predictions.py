"""Predictions of single pairs, and the CSV file they are kept in."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from typing import NamedTuple

from bayes_adapters.errors import DataError


class Prediction(NamedTuple):
    """One pair of a recording and a script: P(label = 1) and its uncertainty in nats."""

    method: str
    seed: int
    split: str
    condition: str
    recording: str
    script: str
    label: int
    probability: float
    total: float
    aleatoric: float
    epistemic: float


def write_predictions(path: str | os.PathLike[str], rows: Iterable[Prediction]) -> None:
    """Write predictions as CSV with a header, floats to nine significant digits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Prediction._fields)
        writer.writerows([f"{v:.9g}" if isinstance(v, float) else v for v in row] for row in rows)


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """Read what :func:`write_predictions` wrote."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) != Prediction._fields:
            raise DataError(f"The first line of {path} must be {','.join(Prediction._fields)}.")
        return [
            Prediction(m, int(seed), split, c, rec, script, int(label), float(p), float(t), float(a), float(e))
            for m, seed, split, c, rec, script, label, p, t, a, e in reader
        ]
