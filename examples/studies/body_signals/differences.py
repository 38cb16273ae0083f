"""How sure is it that one method is better than another on unseen people? Paired intervals over people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.analysis import metrics
from bayes_adapters.analysis.bootstrap import PairedDifference
from bayes_adapters.errors import DataError
from examples.studies.body_signals.data import MODALITIES
from examples.studies.body_signals.experiment import WITHHELD, condition_of
from examples.studies.body_signals.records import Row
from examples.studies.comparison import Metric, paired_differences

REFERENCE = "concat-lora"
_COLUMNS = {condition_of(withheld): 2 + i for i, withheld in enumerate(WITHHELD)}


def _over_folds(score: Callable[[Tensor], float]) -> Metric:
    """Mean over folds of ``score``; rows are (fold, label, P(stress) with each set of :data:`WITHHELD` missing)."""
    return lambda rows: fmean(score(rows[rows[:, 0] == fold]) for fold in rows[:, 0].unique().tolist())


def mean_auc(probs: Float[Tensor, "N K"], labels: Float[Tensor, " N"]) -> float:
    """Mean over K columns of :func:`bayes_adapters.analysis.metrics.auc`, all at once; NaN without both classes."""
    stress, rest = (probs[labels == label].T.contiguous() for label in (1, 0))
    if not stress.numel() or not rest.numel():
        return float("nan")
    rest = rest.sort(-1).values
    below, up_to = (torch.searchsorted(rest, stress, right=right).double() for right in (False, True))
    return float((below + up_to).mean()) / (2 * rest.shape[1])


def _auc_without(count: int) -> Metric:
    columns = [_COLUMNS[condition_of(withheld)] for withheld in WITHHELD if len(withheld) == count]
    return _over_folds(lambda rows: mean_auc(rows[:, columns], rows[:, 1]))


METRICS: dict[str, Metric] = {
    "AUC": _auc_without(0),
    "NLL": _over_folds(lambda rows: metrics.nll(rows[:, 2], rows[:, 1].long())),
    "ECE": _over_folds(lambda rows: metrics.ece(rows[:, 2], rows[:, 1].long())),
} | {f"AUC, {k} withheld": _auc_without(k) for k in range(1, len(MODALITIES))}
"""Metric of rows; each is computed within a fold and averaged over folds, as in the table: models of different folds
are not ranked against each other."""


def differences(rows: Iterable[Row], folds: int, draws: int = 500) -> dict[str, dict[str, PairedDifference]]:
    """Return each method minus concat-LoRA, with 95 % intervals from resampling people.

    A person is tested in one fold only. The folds of a partition, seeds ``folds · i … folds · i + folds − 1``, hence
    count as one seed of :func:`examples.studies.comparison.paired_differences`, which then has everybody's windows;
    partitions that some method has not finished are left out. A draw may take fewer people of one fold than of another,
    and leaves out a fold of which it takes nobody.

    Args:
        rows: predictions of all methods with every set of withheld streams.
        folds: of a partition.
        draws: number of resamples.

    Returns:
        method → name of the metric → difference; empty when no partition is finished by all methods.

    Raises:
        ConfigError: nothing was measured for the reference.
        DataError: a window lacks a set of withheld streams.
    """
    said: dict[str, dict[int, dict[Any, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for r in rows:
        numbers = said[r.method][r.seed].setdefault(
            (r.key, r.group), [float(r.seed % folds), float(r.label), *[float("nan")] * len(WITHHELD)]
        )
        numbers[_COLUMNS[r.condition]] = r.probability
    done = set.intersection(*(set(runs) for runs in said.values())) if said else set()
    outputs: dict[str, dict[int, dict[Any, list[float]]]] = defaultdict(lambda: defaultdict(dict))
    for method, runs in said.items():
        for seed in sorted(done):
            if any(value != value for numbers in runs[seed].values() for value in numbers):
                raise DataError(f"{method} seed {seed} lacks predictions of some window with some streams withheld.")
            if done.issuperset(range(seed // folds * folds, (seed // folds + 1) * folds)):
                outputs[method][seed // folds] |= runs[seed]
    if not outputs:
        return {}
    return paired_differences(outputs, REFERENCE, METRICS, group=lambda key: key[1], draws=draws)
