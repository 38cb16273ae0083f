"""Metrics of boxes and masks: how much of what was meant was found, and whether uncertainty points at what was missed.

Boxes are (cx, cy, w, h) in shares of the image (:mod:`bayes_adapters.data.boxes`); masks are P(y = 1), or 0 and 1, of
shape (N, H, W), with targets of class numbers and −100 at pixels that count nowhere. Everything is computed in float64
on the CPU, without gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayes_adapters.analysis._grounding_checks import (
    checked_boxes,
    checked_errors,
    checked_maps,
    checked_masks,
    checked_overlaps,
    require_patch,
)
from bayes_adapters.analysis.metrics import aurc
from bayes_adapters.data import boxes


class PatchCounts(NamedTuple):
    """How accuracy and certainty of patches go together: the three scores of :func:`pavpu`, NaN where one has no base.

    Args:
        pavpu: share of patches that are accurate and certain, or inaccurate and uncertain.
        accurate_if_certain: p(accurate | certain).
        uncertain_if_inaccurate: p(uncertain | inaccurate).
    """

    pavpu: float
    accurate_if_certain: float
    uncertain_if_inaccurate: float


def box_iou(predicted: Tensor, targets: Tensor) -> Float[Tensor, " N"]:
    """Return the IoU of each predicted box with its target, shape (N,), float64.

    Args:
        predicted: shape (N, 4), such as ``prediction.mean``.
        targets: shape (N, 4).

    >>> box_iou(torch.tensor([[0.25, 0.5, 0.5, 1.0]]), torch.tensor([[0.5, 0.5, 1.0, 1.0]]))
    tensor([0.5000], dtype=torch.float64)
    """
    return boxes.iou(*checked_boxes(predicted, targets))


def box_giou(predicted: Tensor, targets: Tensor) -> Float[Tensor, " N"]:
    """Return the generalised IoU of each predicted box with its target, from −1 to 1, shape (N,), float64.

    >>> box_giou(torch.tensor([[0.1, 0.5, 0.2, 1.0]]), torch.tensor([[0.9, 0.5, 0.2, 1.0]]))
    tensor([-0.6000], dtype=torch.float64)
    """
    return boxes.giou(*checked_boxes(predicted, targets))


def mask_iou(predicted: Tensor, targets: Tensor, *, threshold: float = 0.5, positive: int = 1) -> Float[Tensor, " N"]:
    """Return the IoU of each predicted mask with its target over labelled pixels, shape (N,), float64.

    Where both are empty it is 1: nothing was meant and nothing was found.

    Args:
        predicted: P(y = 1), or 0 and 1, shape (N, H, W); of C classes ``probs[..., c]``.
        targets: class numbers, shape (N, H, W), −100 at pixels that count nowhere.
        threshold: a pixel above it is found.
        positive: the class that is meant.

    >>> found, meant = torch.tensor([[[0.9, 0.8, 0.1]]]), torch.tensor([[[1, 0, 1]]])
    >>> mask_iou(found, meant)
    tensor([0.3333], dtype=torch.float64)
    """
    shared, union = _overlap(predicted, targets, threshold, positive)
    return torch.where(union > 0, shared / union.clamp(min=1), 1.0)


def mean_iou(overlaps: Tensor) -> float:
    """Return the mean of IoU over examples (mIoU).

    Args:
        overlaps: shape (N,), of :func:`box_iou` or :func:`mask_iou`.

    >>> mean_iou(torch.tensor([0.5, 1.0]))
    0.75
    """
    return float(checked_overlaps(overlaps).mean())


def precision_at(overlaps: Tensor, threshold: float = 0.5) -> float:
    """Return the share of examples whose IoU is at least ``threshold`` (P@0.5, the accuracy of referring expressions).

    >>> precision_at(torch.tensor([0.5, 0.4, 0.9]))  # doctest: +ELLIPSIS
    0.666...
    """
    return float((checked_overlaps(overlaps) >= threshold).double().mean())


def overall_iou(predicted: Tensor, targets: Tensor, *, threshold: float = 0.5, positive: int = 1) -> float:
    """Return the sum of intersections over the sum of unions (oIoU), in which large masks count more; NaN for none.

    Args:
        predicted: as of :func:`mask_iou`.
        targets: as of :func:`mask_iou`.
        threshold: as of :func:`mask_iou`.
        positive: as of :func:`mask_iou`.

    >>> found = torch.tensor([[[1.0, 1.0, 1.0, 1.0]], [[1.0, 0.0, 0.0, 0.0]]])
    >>> overall_iou(found, torch.tensor([[[1, 1, 1, 1]], [[0, 1, 0, 0]]]))  # the mean of 1 and 0 is .5
    0.6666666666666666
    """
    shared, union = _overlap(predicted, targets, threshold, positive)
    return float(shared.sum() / union.sum())


def _overlap(predicted: Tensor, targets: Tensor, threshold: float, positive: int) -> tuple[Tensor, Tensor]:
    probs, meant, known = checked_masks(predicted, targets, positive)
    found = (probs > threshold) & known
    return (found & meant).flatten(1).sum(1).double(), (found | meant).flatten(1).sum(1).double()


def pavpu(
    uncertainty: Tensor,
    correct: Tensor,
    *,
    threshold: float,
    patch: tuple[int, int] = (4, 4),
    accurate: float = 0.5,
    known: Bool[Tensor, "N H W"] | None = None,
) -> PatchCounts:
    """Return patch accuracy against patch uncertainty: is the model right where it is sure, and unsure where it errs?

    The images are cut into patches, and a patch is accurate if at least the share ``accurate`` of its pixels is right,
    and certain if the mean uncertainty of its pixels is at most ``threshold``. With the numbers n of patches::

        PAvPU = (n_ac + n_iu) / n      p(accurate | certain) = n_ac / (n_ac + n_ic)
        p(uncertain | inaccurate) = n_iu / (n_iu + n_ic)

    The threshold is an entropy; curves over it are drawn from the smallest to the largest uncertainty. Sides that are
    no multiple of the patch leave smaller patches at the right and at the bottom, and patches without a labelled pixel
    do not count.

    Args:
        uncertainty: of each pixel, nats, shape (N, H, W).
        correct: whether each pixel's class is right, shape (N, H, W), bool or 0 and 1.
        threshold: nats.
        patch: (height, width) in pixels.
        accurate: from 0 to 1.
        known: which pixels count; None for all.

    Source: Mukhoti and Gal 2018, arXiv 1811.12709, section 4.

    >>> right = torch.tensor([[[1, 1, 0, 0]]])
    >>> pavpu(torch.tensor([[[0.1, 0.1, 0.6, 0.6]]]), right, threshold=0.3, patch=(1, 2)).pavpu
    1.0
    """
    u, right, counted = checked_maps(uncertainty, correct, known)
    require_patch(patch, accurate)
    pixels = _sums(counted, patch)
    some = pixels > 0
    share = _sums(right * counted, patch)[some] / pixels[some]
    certain = _sums(u * counted, patch)[some] / pixels[some] <= threshold
    good = share >= accurate
    ac, ic, iu = (float((a & b).sum()) for a, b in ((good, certain), (~good, certain), (~good, ~certain)))
    return PatchCounts(_ratio(ac + iu, len(good)), _ratio(ac, ac + ic), _ratio(iu, iu + ic))


def ause(uncertainty: Tensor, error: Tensor) -> float:
    """Return the area under the sparsification error: how far uncertainty is from ordering pixels by their error.

    Take away the most uncertain pixels one after another: the mean error of the rest, as a share of that of all, is the
    sparsification curve; the oracle's takes away the largest errors. The area between both, over the share taken away,
    is 0 for a perfect order. In terms of risk and coverage it is ``(AURC(u) − AURC(e)) / mean(e)``, with the N shares
    k/N and ties averaged as in :func:`~bayes_adapters.analysis.metrics.risk_coverage`. Without any error it is 0.

    Args:
        uncertainty: of each pixel (or coordinate, or example), any shape, any real scale.
        error: the same shape, not negative: ``1 − p_y``, 0 and 1, or |y − μ|.

    Raises:
        DataError: shapes differ, or an error is negative or not finite.

    Source: Ilg et al. 2018, arXiv 1802.07095, section 5.

    >>> error = torch.tensor([0.0, 0.0, 1.0, 1.0])
    >>> ause(error, error), round(ause(-error, error), 4)
    (0.0, 1.1667)
    """
    u, e = checked_errors(uncertainty, error)
    area = aurc(u, e) - aurc(e, e)
    return area / float(e.mean()) if bool((e > 0).any()) else 0.0


def _sums(values: Float[Tensor, "N H W"], patch: tuple[int, int]) -> Float[Tensor, "N h w"]:
    """Sum each patch; patches at the edge are filled up with zeros."""
    height, width = values.shape[1:]
    filled = torch.nn.functional.pad(values, (0, -width % patch[1], 0, -height % patch[0]))
    return filled.unfold(1, patch[0], patch[0]).unfold(2, patch[1], patch[1]).sum((-2, -1))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
