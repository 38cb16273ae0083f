"""Named tuples are read back as they were written; a file of another kind or cut short is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

import pytest

from bayes_adapters.errors import DataError
from examples.studies.rows import read_rows, write_rows
from tests.refusals import refuses


class Row(NamedTuple):
    name: str
    seed: int
    value: float


class Other(NamedTuple):
    name: str
    value: float
    seed: int


ROWS = [Row('a,"b"\nc', -1, 0.1), Row("1", 2, float("inf")), Row("", 0, 1 / 3)]


def test_rows_come_back_with_their_types(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    write_rows(path, Row, ROWS)
    found = list(read_rows(path, Row))
    assert found[:2] == ROWS[:2]
    assert found[2].value == pytest.approx(1 / 3, rel=1e-9)
    assert found[2].value != 1 / 3, "nine digits are enough, and no more are written"
    assert [type(v) for v in found[1]] == [str, int, float]
    with path.open(newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == ["name", "seed", "value"]


def test_no_rows_are_no_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "none.csv", Row, [])
    assert list(read_rows(tmp_path / "none.csv", Row)) == []


def test_another_header_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", Row, ROWS)
    with refuses(DataError, tmp_path / "rows.csv", "name,value,seed"):
        list(read_rows(tmp_path / "rows.csv", Other))
    (tmp_path / "empty.csv").touch()
    with refuses(DataError, tmp_path / "empty.csv", "name,seed,value"):
        list(read_rows(tmp_path / "empty.csv", Row))


@pytest.mark.parametrize("line", ["a,1", "a,1,0.5,7", "a,1.5,0.5", "a,1,half"])
def test_a_line_of_another_kind_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"name,seed,value\nz,1,2.0\n{line}\n")
    rows = read_rows(path, Row)
    assert next(rows) == Row("z", 1, 2.0)
    with refuses(DataError, path, "Line 3", "name,seed,value"):
        next(rows)
