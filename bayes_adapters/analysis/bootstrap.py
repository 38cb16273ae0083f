"""Paired bootstrap: how sure is it that one method is better than another on the same examples?"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bayes_adapters.analysis._checks import require_aligned, require_two_groups


class PairedDifference(NamedTuple):
    """``metric(a) - metric(b)`` on all examples and the 2.5 % and 97.5 % quantiles of its bootstrap draws."""

    difference: float
    low: float
    high: float


def paired_bootstrap(
    metric_fn: Callable[..., float | Tensor],
    a: Tensor | Sequence[Tensor],
    b: Tensor | Sequence[Tensor],
    *,
    groups: Tensor | Sequence[Hashable] | None = None,
    draws: int = 2000,
    seed: int,
) -> PairedDifference:
    """Return ``metric_fn(a) - metric_fn(b)`` with a 95 % percentile interval from resampling examples in pairs.

    Every draw takes the same examples for ``a`` and ``b``. Examples that share a script, speaker or seed are not
    independent: pass that label as ``groups`` and whole groups are drawn instead. Draws where the metric is NaN
    (AUC of one class) are left out.

    Args:
        metric_fn: called as ``metric_fn(*tensors)``, returns one number: ``torch.mean`` of losses, say, or
            :func:`bayes_adapters.analysis.metrics.auc`.
        a: one tensor or several, each with the N examples as first dimension.
        b: the same of the other method, example by example.
        groups: shape (N,), a tensor or any hashable labels; None draws single examples.
        draws: number of resamples.
        seed: seed of the resampling; the same seed gives the same interval.

    Raises:
        DataError: different numbers of examples, or fewer than two groups.

    >>> loss = torch.arange(6.0, dtype=torch.float64)
    >>> [round(v, 6) for v in paired_bootstrap(torch.mean, loss + 1, loss, seed=0)]
    [1.0, 1.0, 1.0]
    """
    a, b = ((v,) if isinstance(v, Tensor) else tuple(v) for v in (a, b))
    labels = groups.tolist() if isinstance(groups, Tensor) else None if groups is None else list(groups)
    sizes = {len(v) for v in (*a, *b)} | ({len(labels)} if labels is not None else set())
    require_aligned(sizes, draws)
    n = sizes.pop()
    names = {g: i for i, g in enumerate(dict.fromkeys(range(n) if labels is None else labels))}
    require_two_groups(len(names))
    member = torch.tensor([names[g] for g in (range(n) if labels is None else labels)], device="cpu")
    rng = torch.Generator().manual_seed(seed)
    values = torch.empty(draws, dtype=torch.float64, device="cpu")
    for i in range(draws):
        drawn = torch.randint(len(names), (len(names),), generator=rng, device="cpu")
        times = torch.bincount(drawn, minlength=len(names))
        rows = torch.from_numpy(np.repeat(np.arange(n), times[member].numpy()))  # torch's starts threads each time
        values[i] = float(metric_fn(*(v[rows] for v in a))) - float(metric_fn(*(v[rows] for v in b)))
    low, high = (float(values.nanquantile(q)) for q in (0.025, 0.975))
    return PairedDifference(float(metric_fn(*a)) - float(metric_fn(*b)), low, high)
