"""Boxes in images: one format, its corners, and how much two boxes overlap.

**The format.** A box is (cx, cy, w, h): its centre, its width and its height, in shares of the image, so that the image
is the unit square, x to the right and y downwards. Everything in this library takes and returns boxes like that; only
:func:`from_corners` and :func:`to_corners` know another. Of the usual formats it is the one in which any four numbers
in (0, 1) are a box, never an inverted one.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_LEAST = 1e-12
"""A smaller area, of a box of a millionth of the image by a millionth, counts as none: ratios of such overflow."""


def from_corners(corners: Float[Tensor, "... 4"], size: tuple[float, float] = (1.0, 1.0)) -> Float[Tensor, "... 4"]:
    """Return boxes of corners (x1, y1, x2, y2), as most data sets have them.

    Args:
        corners: floating point, in units in which the image is ``size``, such as pixels.
        size: (H, W), height before width, as of an image tensor.

    >>> from_corners(torch.tensor([[20.0, 10.0, 60.0, 50.0]]), size=(50, 100))
    tensor([[0.4000, 0.6000, 0.4000, 0.8000]])
    """
    height, width = size
    x1, y1, x2, y2 = corners.unbind(-1)
    return torch.stack([(x1 + x2) / (2 * width), (y1 + y2) / (2 * height), (x2 - x1) / width, (y2 - y1) / height], -1)


def to_corners(boxes: Float[Tensor, "... 4"], size: tuple[float, float] = (1.0, 1.0)) -> Float[Tensor, "... 4"]:
    """Return the corners (x1, y1, x2, y2) of boxes, in units in which the image is ``size`` (H, W).

    >>> to_corners(torch.tensor([[0.5, 0.5, 0.5, 0.5]]), size=(40, 100))
    tensor([[25., 10., 75., 30.]])
    """
    height, width = size
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([(cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height], -1)


def iou(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Return ``|a ∩ b| / |a ∪ b|``, from 0 to 1, of pairs of boxes.

    A side that is not positive, or an area below 1e-12, makes a box empty: its IoU is 0 with any box, itself included.
    Gradients are finite everywhere; where the boxes do not meet they are 0, for which :func:`giou` is made.

    Args:
        a: boxes.
        b: boxes, of a shape that broadcasts with that of ``a``.

    >>> iou(torch.tensor([0.25, 0.5, 0.5, 1.0]), torch.tensor([0.5, 0.5, 0.5, 1.0]))  # a half of each in common
    tensor(0.3333)
    """
    shared, union, _ = _areas(a, b)
    return _share(shared, union)


def giou(a: Float[Tensor, "... 4"], b: Float[Tensor, "... 4"]) -> Float[Tensor, "..."]:
    """Return ``IoU − (|C| − |a ∪ b|) / |C|``, C being the smallest box around both: from −1 to 1.

    It is 1 for equal boxes and falls on towards −1 as boxes that do not meet move apart. Where C has no area, as for
    two equal empty boxes, the second term counts 0.

    Args:
        a: boxes.
        b: boxes, of a shape that broadcasts with that of ``a``.

    Source: Rezatofighi et al. 2019, arXiv 1902.09630.

    >>> giou(torch.tensor([0.1, 0.5, 0.2, 1.0]), torch.tensor([0.9, 0.5, 0.2, 1.0]))  # .6 of C lies between them
    tensor(-0.6000)
    """
    shared, union, around = _areas(a, b)
    return _share(shared, union) - _share(around - union, around)


def _areas(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of the intersection, of the union, and of the smallest box around both."""
    sides_a, sides_b = a[..., 2:].clamp_min(0.0), b[..., 2:].clamp_min(0.0)
    low_a, high_a = a[..., :2] - sides_a / 2, a[..., :2] + sides_a / 2
    low_b, high_b = b[..., :2] - sides_b / 2, b[..., :2] + sides_b / 2
    shared = _area((torch.minimum(high_a, high_b) - torch.maximum(low_a, low_b)).clamp_min(0.0))
    around = _area(torch.maximum(high_a, high_b) - torch.minimum(low_a, low_b))
    return shared, _area(sides_a) + _area(sides_b) - shared, around


def _area(sides: Float[Tensor, "... 2"]) -> Float[Tensor, "..."]:
    return sides[..., 0] * sides[..., 1]


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 0, with a gradient of 0, where there is no whole."""
    some = whole > _LEAST
    return torch.where(some, part / torch.where(some, whole, 1.0), 0.0)
