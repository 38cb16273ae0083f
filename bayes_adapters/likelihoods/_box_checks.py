"""What a likelihood of boxes refuses."""

from __future__ import annotations

import math

from torch import Tensor

from bayes_adapters.conditions import refuse_where
from bayes_adapters.errors import ConfigError, DataError

_ROUNDING = 1e-4
"""How far outside the image a corner may lie: shares of pixels, rounded in float16 or in text."""


def require_potential(name: str, weight: object) -> None:
    """Raise :class:`ConfigError` unless the weight of a potential is a number from 0 on."""
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0.0 <= weight < math.inf:
        raise ConfigError(
            f"{name} is the weight of a loss in nats, 0 for none, and must be finite and not negative; got {weight!r}."
        )


def require_boxes(targets: Tensor) -> None:
    """Refuse what are no boxes (cx, cy, w, h) in the image, shape (B, 4), floating point."""
    if targets.dim() != 2 or targets.shape[1] != 4 or not targets.is_floating_point():
        raise DataError(
            "Boxes must be floating point of shape (B, 4), (cx, cy, w, h) in shares of the image; got "
            f"{targets.dtype} of shape {tuple(targets.shape)}. Pixels become such boxes by "
            "bayes_adapters.data.boxes.from_corners(corners.float(), size=(H, W))."
        )
    centre, sides = targets[:, :2], targets[:, 2:]
    unknown, empty = ~targets.isfinite().all(1), (sides <= 0).any(1)
    outside = ((centre - sides / 2 < -_ROUNDING) | (centre + sides / 2 > 1 + _ROUNDING)).any(1)
    refuse_where(unknown | empty | outside, lambda: _no_boxes(targets, unknown, empty, outside))


def _no_boxes(targets: Tensor, unknown: Tensor, empty: Tensor, outside: Tensor) -> DataError:
    faults = (
        (unknown, "hold NaN or infinity", "Drop these examples; among several tasks a row of NaN has no box."),
        (
            empty,
            "have a width or height that is not positive",
            "Is x2 < x1 or y2 < y1 in the corners that they come from, or is the box empty? Sort the corners, or drop "
            "these examples.",
        ),
        (
            outside,
            "reach outside the image",
            "Are they pixels, or corners (x1, y1, x2, y2)? bayes_adapters.data.boxes.from_corners(corners, size=(H, W))"
            " makes boxes of those; clip corners to the image first where it cuts boxes off.",
        ),
    )
    bad, what, fix = next(fault for fault in faults if bool(fault[0].any()))
    rows = bad.nonzero().flatten()[:5]
    found = [[round(number, 4) for number in row] for row in targets[rows].tolist()]
    return DataError(
        f"Boxes must be (cx, cy, w, h) in shares of the image and lie in it; rows {rows.tolist()} {what}: {found}. "
        f"{fix}"
    )
