"""What a run of this benchmark leaves beside its records: what was said about every window."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from bayes_adapters.errors import DataError


class Row(NamedTuple):
    """What one method said about one window of an unseen person.

    ``condition`` is ``all`` or ``without-BVP+ACC``, the withheld streams in the order of the data; ``key`` is the
    window (``12/3`` is the fourth of person 12), ``group`` the person. Uncertainties are in nats.
    """

    method: str
    seed: int
    condition: str
    key: str
    group: str
    label: int
    probability: float
    total: float
    aleatoric: float
    epistemic: float


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write predictions as CSV with a header, floats to nine significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows([f"{v:.9g}" if isinstance(v, float) else v for v in row] for row in rows)


def read_rows(path: str | os.PathLike[str]) -> Iterator[Row]:
    """Read what :func:`write_rows` wrote, row by row.

    Raises:
        DataError: the header is another one.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) != Row._fields:
            raise DataError(f"The first line of {path} must be {','.join(Row._fields)}. Is it of another benchmark?")
        for method, seed, condition, key, group, label, *rest in reader:
            yield Row(method, int(seed), condition, key, group, int(label), *map(float, rest))
