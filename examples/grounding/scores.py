"""Rows of expressions → the record of a split, and the metrics that intervals are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bayes_adapters.analysis.metrics import aurc, auroc
from examples.grounding.records import Result, Row

FOUND = 0.5
"""The IoU from which a box or a mask counts as found."""


def column(rows: Sequence[Row], name: str) -> Tensor:
    """Return a field of all rows, shape (N,), float64."""
    return torch.tensor([getattr(row, name) for row in rows], dtype=torch.float64)


def told(score: Tensor, positive: Tensor) -> float:
    """Return the AUROC; NaN where all are of one side or the score is not known, .5 where it is the same for all."""
    positive = positive.bool()
    if bool(positive.all()) or not bool(positive.any()) or bool(score.isnan().any()):
        return math.nan
    return 0.5 if float(score.min()) == float(score.max()) else auroc(score, positive.double())


def scored(rows: Sequence[Row], reference: Sequence[Row], *, samples: int, seconds: float) -> Result:
    """Return the record of one method, seed and split.

    Args:
        rows: of its expressions.
        reference: those of the test split, from which this split is to be told.
        samples: draws of a prediction.
        seconds: that it took.
    """
    first = rows[0]
    of = {name: column(rows, name) for name in Row._fields[6:]}
    known = {name: column(reference, name) for name in ("box_total", "box_epistemic")}
    wrong, unfound = (of[name] < FOUND for name in ("box_iou", "mask_iou"))
    boxes, foreign = bool(of["box_iou"].isfinite().all()), rows is not reference

    def apart(name: str) -> float:
        score = torch.cat([of[name], known[name]])
        return told(score, torch.arange(len(score)) < len(rows)) if foreign else math.nan

    def mean(name: str) -> float:
        return float(of[name].mean())

    return Result(
        method=first.method,
        seed=first.seed,
        split="test",
        condition=first.condition,
        n=len(rows),
        accuracy=_share(of["box_iou"]),
        auc=math.nan,
        nll=mean("box_nll"),
        brier=math.nan,
        ece=math.nan,
        auroc_error=told(of["box_total"], wrong),
        auroc_ood=apart("box_epistemic"),
        aurc=aurc(of["box_total"], wrong.double()) if boxes else math.nan,
        samples=samples,
        seconds=seconds,
        auroc_error_epistemic=told(of["box_epistemic"], wrong),
        auroc_ood_total=apart("box_total"),
        total=mean("box_total"),
        aleatoric=mean("box_total") - mean("box_epistemic"),
        epistemic=mean("box_epistemic"),
        box_iou=mean("box_iou"),
        coverage=mean("covered"),
        mask_iou=mean("mask_iou"),
        overall_iou=overall(of["shared"], of["union"]),
        mask_p50=_share(of["mask_iou"]),
        mask_nll=mean("mask_nll"),
        ause=mean("ause"),
        pavpu=mean("pavpu"),
        mask_error=told(of["mask_total"], unfound),
        mask_error_epistemic=told(of["mask_epistemic"], unfound),
        mask_epistemic=mean("mask_epistemic"),
    )


def _share(overlaps: Tensor) -> float:
    return math.nan if bool(overlaps.isnan().any()) else float((overlaps >= FOUND).double().mean())


def overall(shared: Tensor, union: Tensor) -> float:
    """Return the sum of intersections over the sum of unions."""
    return float(shared.sum() / union.sum())


def _found(overlaps: Tensor) -> Tensor:
    return (overlaps >= FOUND).double().mean()


def _error(score: Tensor, overlaps: Tensor) -> float:
    return told(score, overlaps < FOUND)


METRICS: Mapping[str, tuple[Callable[..., float | Tensor], tuple[str, ...]]] = {
    "P@0.5": (_found, ("box_iou",)),
    "box NLL": (torch.mean, ("box_nll",)),
    "mIoU": (torch.mean, ("mask_iou",)),
    "oIoU": (overall, ("shared", "union")),
    "mask NLL": (torch.mean, ("mask_nll",)),
    "AUROC of box errors": (_error, ("box_total", "box_iou")),
    "… by epistemic": (_error, ("box_epistemic", "box_iou")),
}
"""Heading → what is computed of one seed's columns."""
