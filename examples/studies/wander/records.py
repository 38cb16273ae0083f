"""What a run of this study leaves: records with what its training was like, and what was said of every example."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bayes_adapters.analysis.records import Record


@dataclass(frozen=True)
class Result(Record):
    """A record of this study; ``method`` is ``task.variant``.

    Args:
        rate: the learning rate that the validation examples chose.
        validation_nll: of the best epoch, nats.
        gate: root mean square of the gates after training; NaN without one, as all that concerns them.
        closed_auc, closed_nll: of the same numbers with the gates closed, in the plain condition.
        step_seconds: processor time of a training step.
        feature, token, down, gate_gradient, head: root mean square over training of the gradient's norm of F, G, the
            down-projections W, the gates and the head.
        depth_ratio: that of F at the first depth over that at the last; NaN at one depth.
    """

    rate: float = math.nan
    validation_nll: float = math.nan
    gate: float = math.nan
    closed_auc: float = math.nan
    closed_nll: float = math.nan
    step_seconds: float = math.nan
    feature: float = math.nan
    token: float = math.nan
    down: float = math.nan
    gate_gradient: float = math.nan
    head: float = math.nan
    depth_ratio: float = math.nan


class Row(NamedTuple):
    """What one variant said about one example: ``key`` is the example, ``group`` what is resampled whole."""

    method: str
    seed: int
    condition: str
    key: str
    group: str
    label: int
    probability: float
