"""What a run leaves: records of each split, and what was said of each expression."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from bayes_adapters.analysis.records import Record


@dataclass(frozen=True)
class Result(Record):
    """A record of this study: one method and task, seed and split. What its task does not ask is NaN.

    ``accuracy`` is P@0.5 of boxes, ``nll`` of a box the nats of its four numbers together; total, aleatoric and
    epistemic are a box's, summed over them. ``auroc_error`` and ``aurc`` are about boxes with an IoU below 0.5, by the
    total, ``auroc_error_epistemic`` by the epistemic part. ``auroc_ood`` tells this split from the test split. ``auc``,
    ``brier`` and ``ece`` are NaN.

    Args:
        box_iou: mean IoU of boxes.
        coverage: share of boxes of which a conformal box of level .9 holds all four numbers.
        side: mean length of its four intervals, shares of the picture.
        mask_iou, overall_iou: of masks, the mean over expressions (mIoU) and that of all pixels together (oIoU).
        mask_p50: share of masks with an IoU of at least 0.5.
        mask_nll: nats per pixel, of the mean probabilities.
        ause: area under the sparsification error of a mask's pixels by their total, mean over expressions.
        pavpu: share of patches of 8 x 8 pixels that are right and certain, or wrong and uncertain, at ½ log 2 nats.
        mask_error, mask_error_epistemic: AUROC of the mean total, and epistemic part, of a mask, of an IoU below 0.5.
        mask_epistemic: mean over pixels, nats.
        weight: of masks in the ELBO after training.
        train_seconds: processor time of training, without what is made once for all methods.
        step_seconds: of an optimiser step.
    """

    box_iou: float = math.nan
    coverage: float = math.nan
    side: float = math.nan
    mask_iou: float = math.nan
    overall_iou: float = math.nan
    mask_p50: float = math.nan
    mask_nll: float = math.nan
    ause: float = math.nan
    pavpu: float = math.nan
    mask_error: float = math.nan
    mask_error_epistemic: float = math.nan
    mask_epistemic: float = math.nan
    weight: float = math.nan
    train_seconds: float = math.nan
    step_seconds: float = math.nan


class Row(NamedTuple):
    """What one method said of one expression; NaN where its task does not ask.

    Args:
        method: ``method.task``.
        seed: of training.
        condition: the split.
        key: number of the expression in its split, the same for all seeds.
        scene: number of its scene, the unit of intervals.
        form: what its words go by.
        box_iou, box_nll: of the box.
        covered: 1 where the conformal box holds all four numbers, otherwise 0.
        box_total, box_epistemic: nats, summed over the four numbers.
        mask_iou, mask_nll: of the mask, the second in nats per pixel.
        shared, union: pixels found and meant, and found or meant.
        ause, pavpu: of the mask's pixels.
        mask_total, mask_epistemic: mean over pixels, nats.
    """

    method: str
    seed: int
    condition: str
    key: int
    scene: int
    form: str
    box_iou: float = math.nan
    box_nll: float = math.nan
    covered: float = math.nan
    box_total: float = math.nan
    box_epistemic: float = math.nan
    mask_iou: float = math.nan
    mask_nll: float = math.nan
    shared: float = math.nan
    union: float = math.nan
    ause: float = math.nan
    pavpu: float = math.nan
    mask_total: float = math.nan
    mask_epistemic: float = math.nan


class Gain(NamedTuple):
    """A learned λ: how strongly one linear layer of one block listens to the other encoder.

    Args:
        method: ``method.task``.
        seed: of training.
        encoder: ``vision`` or ``text``.
        depth: of the block, from 0.
        linear: ``query``, ``key``, ``value``, ``output``, ``fc1`` or ``fc2``.
        gain: λ.
    """

    method: str
    seed: int
    encoder: str
    depth: int
    linear: str
    gain: float
