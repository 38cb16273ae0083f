"""What one method said about one pair; kept as CSV by :mod:`examples.studies.rows`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple


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


Pair = tuple[str, str, int]
"""What makes a pair the same in every seed: recording, script, label."""


def by_pair(rows: Sequence[Prediction], column: str) -> dict[Pair, dict[int, float]]:
    """Return pair → seed → the value of ``column``."""
    found: dict[Pair, dict[int, float]] = defaultdict(dict)
    for row in rows:
        found[row.recording, row.script, row.label][row.seed] = getattr(row, column)
    return dict(found)


def resampled_together(keys: Sequence[Pair]) -> list[str]:
    """Return a label for each pair: what its recording says, or the recording where no pair has its right script.

    A recording with its right and with a wrong script gives two answers that share what is odd about the recording;
    resampled one by one, their intervals would be too narrow or too wide.
    """
    said = {recording: script for recording, script, label in keys if label == 1}
    return [said.get(recording, recording) for recording, _, _ in keys]
