"""Rank correlations and ratios of variances, and how sure they are: whole scripts are resampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from bayes_adapters.errors import DataError

Interval = tuple[float, float, float]
"""The value, and the 2.5 % and 97.5 % quantiles of its resamples."""


def spearman(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two tensors of shape (N,); ties have their mean rank.

    It is the same for any increasing functions of them: for a variance or its log, for |error| or its square. NaN where
    one of them is constant.

    >>> round(spearman(torch.tensor([1.0, 2.0, 2.0, 9.0]), torch.tensor([0.1, 0.2, 0.4, 0.3])), 4)
    0.6325
    """
    if bool((a == a[0]).all()) or bool((b == b[0]).all()):
        return math.nan
    return float(torch.corrcoef(torch.stack([_ranks(a), _ranks(b)]))[0, 1])


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts.double() - 1) / 2)[place]


def variance_ratio(elsewhere: Tensor, here: Tensor) -> float:
    """Return mean variance on other data divided by mean variance on the task's own.

    Raises:
        DataError: the second one is 0: nothing was drawn.

    >>> variance_ratio(torch.tensor([2.0, 4.0]), torch.tensor([1.0, 0.5, 1.5]))
    3.0
    """
    if not float(here.mean()) > 0:
        raise DataError("The variance on the task's own texts is 0, so there is no ratio. Was there only one draw?")
    return float(elsewhere.mean() / here.mean())


def resampled(
    statistic: Callable[..., float],
    *samples: tuple[Tensor, Sequence[Hashable]],
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """Return a statistic with a 95 % percentile interval from resampling groups of rows; draws with NaN are left out.

    Args:
        statistic: called with one tensor a sample.
        *samples: a tensor, shape (N, …), and its N labels: rows of one label are drawn together. Samples are drawn
            independently of each other.
        draws: number of resamples.
        seed: of the resampling.
    """
    source = torch.Generator().manual_seed(seed)
    members = []
    for _, labels in samples:
        numbers = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        members.append((len(numbers), torch.tensor([numbers[label] for label in labels])))
    found = []
    for _ in range(draws):
        parts = []
        for (values, _), (count, member) in zip(samples, members, strict=True):
            times = torch.bincount(torch.randint(count, (count,), generator=source), minlength=count)[member]
            parts.append(values[torch.from_numpy(np.repeat(np.arange(len(values)), times.numpy()))])
        found.append(statistic(*parts))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = torch.nanquantile(torch.tensor(found, dtype=torch.float64), ends).tolist()
    return statistic(*(values for values, _ in samples)), low, high
