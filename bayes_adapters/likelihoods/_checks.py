"""What likelihoods refuse: targets of another shape, type or range."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.errors import DataError


def require_support(likelihood: str, fn: Any, targets: Tensor) -> None:
    """Refuse targets of another shape than one draw of ``fn`` has, outside its support, NaN or infinite."""
    shape = tuple(fn.batch_shape + fn.event_shape)
    if tuple(targets.shape) != shape:
        raise DataError(
            f"Targets of {likelihood} must have shape {shape}; got {tuple(targets.shape)}.{_column(targets)}"
        )
    fits: Tensor = torch.isfinite(targets)
    with suppress(NotImplementedError):  # a distribution that does not say what its support is
        fits = fits & fn.support.check(targets).reshape(
            *targets.shape[: len(fn.batch_shape)], *[1] * len(fn.event_shape)
        )
    if not bool(fits.all()):
        rows = (~fits).reshape(len(targets), -1).any(1).nonzero().flatten()[:5]
        raise DataError(
            f"Targets lie outside the support of {likelihood}, {type(fn).__name__}: rows {rows.tolist()} hold "
            f"{targets[rows].tolist()}. Is it the likelihood for this kind of target?"
        )


def _column(targets: Tensor) -> str:
    return " Take targets.squeeze(1)." if targets.dim() == 2 and targets.shape[1] == 1 else ""


def require_class_numbers(targets: Tensor, classes: int) -> None:
    if targets.dim() != 1 or targets.is_floating_point():
        fix = " One-hot rows become class numbers by targets.argmax(1)." if targets.dim() == 2 else ""
        if targets.dim() == 1:
            fix = " Class numbers: targets.long(). Real numbers need the likelihood Gaussian."
        raise DataError(
            f"Class targets must be int64 of shape (B,); got {targets.dtype} of shape {tuple(targets.shape)}."
            f"{_column(targets) or fix}"
        )
    bad = (targets < 0) | (targets >= classes)
    if bool(bad.any()):
        raise DataError(
            f"Targets must be class numbers 0 … {classes - 1}; got {targets[bad][:5].tolist()} at rows "
            f"{bad.nonzero().flatten()[:5].tolist()}. Is num_classes too small, or are labels counted from 1?"
        )


def require_reals(targets: Tensor) -> None:
    if targets.dim() != 1 or not targets.is_floating_point():
        fix = " Take targets.float(); for class numbers the likelihood is Categorical." if targets.dim() == 1 else ""
        raise DataError(
            f"Targets must be floating point of shape (B,); got {targets.dtype} of shape {tuple(targets.shape)}."
            f"{_column(targets) or fix}"
        )
    bad = ~torch.isfinite(targets)
    if bool(bad.any()):
        raise DataError(
            f"Targets at rows {bad.nonzero().flatten()[:5].tolist()} are NaN or infinite. Drop or repair these "
            "examples."
        )
