"""Frames: written digits in dark ink on a pale ground."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from examples.av_events.digits import Written
from examples.grounding.pictures import Pictures, trimmed
from examples.grounding.scenes import Scene, Style, compose, ground

FRAME = 64
"""Height and width of a frame, in pixels."""
STYLE = Style(FRAME, 16, 30, 10.0, flip=False)


def draw_frame(rng: random.Random, written: Written, digits: Sequence[int]) -> Scene:
    """Draw these digits, one picture of each, where there is room; none gives the ground alone.

    Args:
        rng: advances.
        written: where the pictures are taken from.
        digits: different ones.

    Returns:
        A scene of 64 x 64 pixels, whose things are of kind ``"0"`` to ``"9"``, in the order of ``digits``.
    """
    if not digits:
        page = np.asarray(ground(rng, FRAME)).transpose(2, 0, 1).copy()
        return Scene(page, np.zeros((FRAME, FRAME), np.uint8), ())
    images = {}
    for digit in digits:
        ink = written.ink[rng.choice(written.of(digit).tolist())]
        page = np.empty((*ink.shape, 4), np.uint8)
        page[..., :3] = [rng.randint(0, 130) for _ in range(3)]
        page[..., 3] = (ink * 255).round()
        images[str(digit)] = trimmed(Image.fromarray(page, "RGBA"))
    return compose(rng, Pictures("written digits", images), [(name, None) for name in images], STYLE)
