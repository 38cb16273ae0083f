"""What a run of this benchmark leaves: a record per condition, and what was said about every utterance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bayes_adapters.analysis.records import Record


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
