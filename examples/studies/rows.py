"""Predictions of single examples as CSV: a named tuple a line, its fields as the header."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TypeVar, get_type_hints

from bayes_adapters.errors import DataError

T = TypeVar("T", bound=NamedTuple)


def write_rows(path: str | os.PathLike[str], kind: type[T], rows: Iterable[T]) -> None:
    """Write ``rows`` of ``kind``, a class of named tuples of str, int and float; floats to nine significant digits."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(kind._fields)
        writer.writerows([f"{v:.9g}" if isinstance(v, float) else v for v in row] for row in rows)


def read_rows(path: str | os.PathLike[str], kind: type[T]) -> Iterator[T]:
    """Read what :func:`write_rows` wrote, row by row.

    Raises:
        DataError: the header is another one, or a line does not hold one value for each field.
    """
    types = [get_type_hints(kind)[name] for name in kind._fields]
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        if tuple(next(reader, ())) != kind._fields:
            raise DataError(f"The first line of {path} must be {','.join(kind._fields)}. Is it of another benchmark?")
        for cells in reader:
            try:
                yield kind._make(as_type(cell) for as_type, cell in zip(types, cells, strict=True))
            except ValueError as error:
                raise DataError(
                    f"Line {reader.line_num} of {path} is not a row of {','.join(kind._fields)} ({error}). "
                    "Was the file cut short? Remove it and the .json beside it, and run again."
                ) from error
