"""What metrics, resampling and records refuse, and their arguments as they compute with them: float64, on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import DataError, described, near_matches


def checked_classes(probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Check and return class probabilities (N, C) float64 and targets (N,) int64, on the CPU."""
    p, y = probs.detach().cpu().double(), targets.detach().cpu()
    if p.dim() not in (1, 2) or y.shape != p.shape[:1] or not len(p) or (p.dim() == 2 and p.shape[1] < 2):
        raise DataError(
            "probs must be P(y=1) of shape (N,) or class probabilities (N, C >= 2) and targets (N,), N >= 1; got "
            f"{tuple(probs.shape)} and {tuple(targets.shape)}. Is the sample dimension still there? Average over it."
        )
    if not bool(((p >= -1e-6) & (p <= 1 + 1e-6)).all()):
        raise DataError(
            f"probs must lie in [0, 1]; got values from {p.min():.3g} to {p.max():.3g}. Logits need sigmoid or softmax "
            "first; log-probabilities are only for nll(..., log=True)."
        )
    if p.dim() == 2 and not bool(((p.sum(-1) - 1).abs() <= 0.02).all()):
        far = p.sum(-1)[(p.sum(-1) - 1).abs().argmax()]
        raise DataError(
            f"Each row of probs must sum to 1; one sums to {far:.3g}. Independent labels are scored one by one, "
            "each as (N,)."
        )
    p = p.clamp(0, 1)
    p = torch.stack([1 - p, p], -1) if p.dim() == 1 else p
    if not bool(((y == y.long()) & (y >= 0) & (y < p.shape[1])).all()):
        raise DataError(f"targets must be class numbers 0 to {p.shape[1] - 1}; got {torch.unique(y).tolist()[:8]}.")
    return p, y.long()


def checked_confidence(probs: Tensor, targets: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    if bins < 1:
        raise DataError(f"bins must be at least 1 (default 15); got {bins}.")
    p, y = checked_classes(probs, targets)
    return p.amax(-1).clamp(max=1 - 2**-53), p.argmax(-1) == y


def checked_scores(score: Tensor, error: Tensor, first: str, second: str) -> tuple[Tensor, Tensor]:
    s, e = score.detach().cpu().double(), error.detach().cpu().double()
    if s.dim() != 1 or s.shape != e.shape or not len(s):
        raise DataError(f"{first} and {second} must both be (N,), N >= 1; got {tuple(s.shape)} and {tuple(e.shape)}.")
    if bool(s.isnan().any() | e.isnan().any()):
        raise DataError(f"{first} and {second} must not be NaN. Did a sample overflow before the average?")
    return s, e


def require_clamp(clamp: float) -> None:
    """Raise :class:`DataError` unless the least probability lies between 0 and 1."""
    if not 0 < clamp < 1:
        raise DataError(f"clamp must lie between 0 and 1 (default 1e-7); got {clamp}.")


def require_class(positive: int, classes: int) -> None:
    """Raise :class:`DataError` unless ``positive`` is one of ``classes`` class numbers."""
    if not 0 <= positive < classes:
        raise DataError(f"positive must name one of the {classes} classes, 0 to {classes - 1}; got {positive}.")


def require_binary(positives: Tensor) -> None:
    """Raise :class:`DataError` unless every entry is 0 or 1."""
    if not bool(((positives == 0) | (positives == 1)).all()):
        raise DataError("positives must be bool or 0/1. For a graded loss use risk_coverage.")


def require_samples(probs_samples: Tensor) -> None:
    """Raise :class:`DataError` unless probabilities have shape (S, N) or (S, N, …, C), floating point, no axis of 0."""
    if probs_samples.dim() < 2 or 0 in probs_samples.shape or not probs_samples.is_floating_point():
        raise DataError(
            "decompose needs floating-point probabilities of shape (S, N) or (S, N, …, C), posterior samples first; "
            f"got {tuple(probs_samples.shape)} {probs_samples.dtype}. One sample is probs[None]."
        )


def require_probabilities(p: Float[Tensor, "S N *C"]) -> None:
    """Raise :class:`DataError` unless every entry lies in [0, 1], but for rounding."""
    if not bool(((p >= -1e-6) & (p <= 1 + 1e-6)).all()):
        raise DataError(
            f"decompose needs probabilities from 0 to 1; got values from {p.min():.3g} to {p.max():.3g}. Were these "
            "logits? Apply sigmoid or softmax first."
        )


def require_aligned(sizes: set[int], draws: int) -> None:
    """Raise :class:`DataError` unless all arguments of a paired bootstrap have one length, and there is a draw."""
    if len(sizes) != 1 or draws < 1:
        raise DataError(
            f"paired_bootstrap needs the same examples in a, b and groups, and draws >= 1; got sizes {sorted(sizes)} "
            f"and draws={draws}. Align the two sets of predictions by example first."
        )


def require_two_groups(count: int) -> None:
    """Raise :class:`DataError` unless there are at least two examples or groups to resample."""
    if count < 2:
        raise DataError(f"Resampling needs at least two examples or groups; got {count}.")


def require_records(path: str | os.PathLike[str], rows: object) -> None:
    """Raise :class:`DataError` unless what the file ``path`` holds is a list of JSON objects."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} must be a JSON list of records, as write_records makes it; got {described(rows)}.")


def require_fields(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]], names: Sequence[str]) -> None:
    """Raise :class:`DataError` unless the keys of every record are exactly ``names``."""
    for i, row in enumerate(rows):
        if unknown := [k for k in row if k not in names]:
            near = near_matches(unknown[0], names)
            raise DataError(f"Record {i} of {path} has the unknown key {unknown[0]!r}.{near}")
        if missing := [k for k in names if k not in row]:
            raise DataError(f"Record {i} of {path} lacks {', '.join(missing)}. Was it made by an older version?")


def require_one_target(likelihood: object, per_token: bool, compares: bool) -> None:
    """Raise :class:`DataError` where a likelihood has one target per token, or compares the rows of a batch."""
    if compares:
        raise DataError(
            f"to_arviz() takes densities of single examples, and those of {type(likelihood).__name__} depend on the "
            "other rows: leave-one-out of them would mean nothing. Use similarities(..., return_samples=True)."
        )
    if per_token:
        raise DataError(
            f"to_arviz() takes one target per example; {type(likelihood).__name__} has one per token. Use "
            "predict(..., return_samples=True) for token-wise draws."
        )


def require_all_or_none(targets: int, batches: int) -> None:
    """Raise :class:`DataError` where there is no batch, or some batches have targets and others none."""
    if not batches:
        raise DataError("There is nothing to draw: the data holds no batch. Was a generator already exhausted?")
    if targets not in (0, batches):
        raise DataError(f"{targets} of {batches} batches have targets; give all of them targets, or none.")
