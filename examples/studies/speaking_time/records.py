"""What a run of this benchmark leaves: a record per kind of text, and what was said about every text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bayes_adapters.analysis.records import Record

TEST = "test"
"""The condition of the recordings of unseen scripts; the others are kinds of text, of which nobody knows the time."""


@dataclass(frozen=True)
class Result(Record):
    """A record of this benchmark. Errors are in log(seconds), so .1 is about 10 %; ``nll`` in nats of log(seconds).

    Args:
        rmse: root of the mean squared error of the predictive mean.
        variance: mean variance of the predicted mean across draws.
        variance_ratio: that on these texts divided by that on the test scripts.
        spearman: ρ of variance and absolute error.
        spearman_length: ρ of characters and variance.
        ranks: left in all layers together.
        bytes: of the saved adapter.
        export_bytes: of the plain LoRA exported from it.
        export_difference: largest distance of the exported LoRA's predictions from those of the adapter at its mean.
        processor_seconds: of training and of predicting the test scripts and the other texts.
    """

    rmse: float = math.nan
    variance: float = math.nan
    variance_ratio: float = math.nan
    spearman: float = math.nan
    spearman_length: float = math.nan
    ranks: float = math.nan
    bytes: float = math.nan
    export_bytes: float = math.nan
    export_difference: float = math.nan
    processor_seconds: float = math.nan


class Row(NamedTuple):
    """What one method said about one text; NaN where there is no recording of it.

    ``key`` is the prompt's name, or ``fr/3`` for the fourth shortest text of a kind; ``group`` is the script.
    ``log_seconds`` was measured, ``mean`` predicted, both in log(seconds); ``variance`` is across draws of the mean,
    ``nll`` in nats.
    """

    method: str
    seed: int
    condition: str
    key: str
    group: str
    characters: int
    log_seconds: float
    mean: float
    variance: float
    nll: float
