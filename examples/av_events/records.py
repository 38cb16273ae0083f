"""What a run of the study leaves: records, and what was said of every clip or frame."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bayes_adapters.analysis.records import Record


@dataclass(frozen=True)
class Result(Record):
    """A record of the study; ``method`` is ``task-method``.

    Accuracy, NLL, ECE and AURC are those of segments, or of pixels. ``auroc_ood`` is that of whole clips or frames by
    their mean epistemic part, against the condition ``seen``.

    Args:
        iou: mean IoU of the masks; NaN for events.
        ause: area under the sparsification error of the total uncertainty, the error being 1 − p of the label.
        temperature: that fits the validation examples best.
        nll_scaled, ece_scaled: with that temperature.
        train_seconds: processor time of training, with the choice of the epoch.
        test_seconds: processor time of all tests.
    """

    iou: float = math.nan
    ause: float = math.nan
    temperature: float = math.nan
    nll_scaled: float = math.nan
    ece_scaled: float = math.nan
    train_seconds: float = math.nan
    test_seconds: float = math.nan


class Row(NamedTuple):
    """What a method said of one clip or frame: means over its segments or pixels, and a mask's IoU.

    ``score`` is the accuracy of a clip's segments, or the IoU of a frame's mask; NLLs and entropies are in nats.
    """

    method: str
    seed: int
    condition: str
    unit: int
    score: float
    nll: float
    nll_scaled: float
    total: float
    epistemic: float
