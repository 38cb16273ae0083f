"""What a run of this benchmark leaves: a record per condition, and what was said about every utterance."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from bayes_adapters.errors import DataError
from bayes_adapters.records import Record


@dataclass(frozen=True)
class Result(Record):
    """A record of this benchmark; ``auc`` is that of the class "neutral" against the rest.

    Args:
        ranks_kept: mean number of ranks in use in an adapted layer; NaN without adapters.
        train_seconds: wall-clock time of training, all members together.
    """

    ranks_kept: float = math.nan
    train_seconds: float = math.nan


class Row(NamedTuple):
    """What one method said about one utterance; ``label`` is -1 where there is none."""

    method: str
    seed: int
    condition: str
    key: str
    group: str
    label: int
    p_negative: float
    p_neutral: float
    p_positive: float
    total: float
    aleatoric: float
    epistemic: float


def read_results(path: str | os.PathLike[str]) -> list[Result]:
    """Read results written by :func:`bayes_adapters.records.write_records`; null becomes NaN.

    Raises:
        DataError: not a list of this benchmark's records.
    """
    try:
        rows: list[dict[str, Any]] = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}). Was it cut short, or written by something else?") from error
    names = {f.name for f in fields(Result)}
    if not isinstance(rows, list) or any(not isinstance(row, dict) or set(row) != names for row in rows):
        raise DataError(f"{path} does not hold records of this benchmark. Was it made by another version?")
    filled: list[dict[str, Any]] = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows]
    return [Result(**row) for row in filled]
