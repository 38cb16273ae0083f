"""What a run of this study leaves: records, and what was said of every recording."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bayes_adapters.analysis.records import Record


@dataclass(frozen=True)
class Result(Record):
    """A record of this study: one method, seed and condition.

    ``accuracy``, ``nll``, ``brier`` and ``ece`` are of lists with the partner: R@1, and of the choice among g; total,
    aleatoric and epistemic likewise. ``auroc_ood`` is of these lists by epistemic, against clean ones. Of other
    languages there are lists without the partner only: a translation is no match; ``recall…`` then say how often it
    is found all the same.

    Args:
        recall1, recall5, recall10, median_rank: of recordings that ask for scripts of the whole split; NaN of pair
            scorers.
        back1, back5, back10, median_rank_back: of scripts that ask for recordings.
        list5, list10: R@5 and R@10 in lists.
        temperature: fitted; scaled_nll, scaled_ece: with it.
        threshold: of the mean score; NaN where nothing can be answered at the risk.
        coverage: share of lists with the partner that are answered; false_coverage: of those without.
        given_wrong: share of all lists, half of them without the partner, that are answered wrongly: the risk.
        right: share of lists with the partner that are answered rightly.
        by_score, by_total, by_epistemic, by_null: AUROC of "no match", lists without the partner against those with it:
            by minus the best mean score, total, epistemic, and P(none) of ``NullCandidate``. For other languages those
            with the partner are clean English ones.
        null_nll: −log P(right answer, which may be "none"), nats.
        pool: w, of a pair scorer beside the dual encoder; NaN of dual encoders.
        rate, weight: learning rate and KL weight that were chosen.
        validation_nll: of the best epoch.
        train_seconds: processor time of training, of the first dual encoder too where one ranks again.
    """

    recall1: float = math.nan
    recall5: float = math.nan
    recall10: float = math.nan
    median_rank: float = math.nan
    back1: float = math.nan
    back5: float = math.nan
    back10: float = math.nan
    median_rank_back: float = math.nan
    list5: float = math.nan
    list10: float = math.nan
    temperature: float = math.nan
    scaled_nll: float = math.nan
    scaled_ece: float = math.nan
    threshold: float = math.nan
    coverage: float = math.nan
    false_coverage: float = math.nan
    given_wrong: float = math.nan
    right: float = math.nan
    by_score: float = math.nan
    by_total: float = math.nan
    by_epistemic: float = math.nan
    by_null: float = math.nan
    null_nll: float = math.nan
    pool: float = math.nan
    rate: float = math.nan
    weight: float = math.nan
    validation_nll: float = math.nan
    train_seconds: float = math.nan


class Row(NamedTuple):
    """What one method said of one recording's two lists; NaN where there is none. ``group`` is resampled whole."""

    method: str
    seed: int
    condition: str
    key: str
    group: str
    rank: float
    list_rank: float
    nll: float
    scaled_nll: float
    right: float
    wrong: float
    wrong_without: float
    score: float
    total: float
    epistemic: float
    none: float
    score_without: float
    total_without: float
    epistemic_without: float
    none_without: float
