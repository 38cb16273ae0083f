"""What likelihoods refuse that compare the rows of a batch: rows without others to be compared with."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayes_adapters.conditions import refuse_where
from bayes_adapters.distributions import IGNORED
from bayes_adapters.errors import ConfigError, DataError

MOST_SCALE = 100.0
"""The largest factor of cosines, as CLIP has it: logits beyond 100 make training unstable."""
MOST_LOG_SCALE = math.log(MOST_SCALE)
_ALONE = (
    "Take batches of two or more pairs: batches(..., drop_last=True), or another batch_size. To compare one query with "
    "a gallery take similarities()."
)


def require_scale(scale: object, most: float) -> None:
    """Raise :class:`ConfigError` unless the first scale of similarities is positive and at most ``most``."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0.0 < scale <= most * (1 + 1e-9):
        raise ConfigError(
            f"scale is the first factor of cosines, one over the temperature, and must lie between 0 and {most:g}; got "
            f"{scale!r}. CLIP starts at 1/0.07."
        )


def require_candidates(count: int) -> None:
    """Raise :class:`DataError` where there is one pair only, which any model would tell from nothing."""
    if count < 2:
        raise DataError(f"A batch of 1 pair has no other candidate: its probability is 1 whatever the model. {_ALONE}")


def require_groups(targets: Tensor) -> None:
    """Refuse targets that are no numbers of groups (B,), B ≥ 2, or of which there is one only."""
    if targets.dim() != 1 or targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise DataError(
            f"Contrastive takes the numbers of groups, int64 of shape (B,): rows with equal numbers belong together; "
            f"got {targets.dtype} of shape {tuple(targets.shape)}. Where every pair is its own group, pass "
            "torch.arange(B), or each pair's number in the data set."
        )
    require_candidates(len(targets))
    refuse_where(
        (targets == targets[:1]).all(),
        lambda: DataError(
            f"All {len(targets)} pairs of the batch belong to the group {int(targets[0])}, so there is no wrong "
            f"candidate. Are these class numbers? Contrastive takes a number for each pair, equal for duplicates. "
            f"{_ALONE}"
        ),
    )


def require_lists(targets: Tensor) -> None:
    """Refuse targets that are no lists of candidates with a right and a wrong row in each."""
    if targets.dim() != 2 or targets.shape[1] != 2 or targets.is_floating_point() or targets.dtype == torch.bool:
        raise DataError(
            f"Candidates takes int64 of shape (B, 2), the number of a row's list and whether the row is right (1), "
            f"wrong (0) or not known ({IGNORED}); got {targets.dtype} of shape {tuple(targets.shape)}. "
            "bayes_adapters.data.pairs.all_pairs makes them."
        )
    marks = targets[:, 1]
    odd = (marks != 0) & (marks != 1) & (marks != IGNORED)
    refuse_where(
        odd,
        lambda: DataError(
            f"The second column of Candidates' targets must be 1, 0 or {IGNORED}; rows "
            f"{odd.nonzero().flatten()[:5].tolist()} have {marks[odd][:5].tolist()}."
        ),
    )
    together = targets[:, None, 0] == targets[None, :, 0]
    right, known = (together & (marks == 1)).any(1), (together & (marks != IGNORED)).any(1)
    bad = known & (~right | ~(together & (marks == 0)).any(1))
    refuse_where(
        bad,
        lambda: DataError(
            f"The lists {targets[bad, 0].unique()[:8].tolist()} lack a right row or a wrong one. A batch holds lists "
            "whole: batches() and shuffling loaders cut single rows. Pass a list of batches, each of whole lists."
        ),
    )


def require_known_lists(targets: object) -> None:
    """Raise :class:`DataError` where nothing says which rows are compared."""
    if targets is None:
        raise DataError(
            "A pair's score is no probability by itself, and without targets nothing says which rows are one list. "
            f"Pass targets of shape (B, 2): the list's number, and {IGNORED} for what is not known. Or take "
            "similarities(), which compares every query with every candidate."
        )


def require_alone(name: str, task: object) -> None:
    """Raise :class:`ConfigError` where a task's rows are compared with one another."""
    if getattr(task, "compares", False):
        raise ConfigError(
            f"The task {name!r} is {type(task).__name__}, which compares the rows of a batch; in Tasks every example "
            "has targets of its own. Train it as a model's only likelihood."
        )
