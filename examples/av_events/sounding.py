"""Sounding scenes: several digits are seen, one of them is spoken, and its pixels are asked."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from bayes_adapters.errors import whole_number
from examples.av_events.digits import Written
from examples.av_events.frames import draw_frame
from examples.av_events.recordings import Recordings
from examples.av_events.sounds import Seconds, pick


@dataclass(frozen=True, eq=False)
class Sounding:
    """N frames with a second of sound each.

    Args:
        frames: shape (N, 3, 64, 64), uint8.
        owner: shape (N, 64, 64), uint8: 0 where the ground is, k + 1 where the k-th digit of the frame is.
        sounds: ``sounds.waves(rows)`` is (B, 16000).
        target: shape (N,), int64: which digit of the frame is spoken.
        digits: shape (N,), int64: what is said, 0 to 9.
        shown: of each frame, its digits.
        speakers: of each sound.
    """

    frames: UInt8[Tensor, "N 3 64 64"]
    owner: UInt8[Tensor, "N 64 64"]
    sounds: Seconds
    target: Int[Tensor, " N"]
    digits: Int[Tensor, " N"]
    shown: tuple[tuple[int, ...], ...]
    speakers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.speakers)

    def masks(self, rows: Int[Tensor, " B"]) -> Bool[Tensor, "B 64 64"]:
        """Return the pixels of the digits that are spoken at ``rows``, shape (B, 64, 64), bool."""
        return self.owner[rows] == (self.target[rows] + 1)[:, None, None]


def make_sounding(recordings: Recordings, written: Written, count: int, seed: str | int) -> Sounding:
    """Make frames of two to four different digits, one of which is spoken.

    Args:
        recordings: have all digits.
        written: has all digits.
        count: N.
        seed: frame n depends on ``seed`` and n alone.

    Raises:
        ConfigError: ``count`` is below 1.

    >>> from examples.av_events.digits import strokes
    >>> from examples.av_events.recordings import tones
    >>> some = make_sounding(tones(), strokes(), 3, seed=0)
    >>> [digits[place] for digits, place in zip(some.shown, some.target)] == some.digits.tolist()
    True
    """
    whole_number("count", count)
    scenes, shown, targets, chosen = [], [], [], []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        digits = tuple(rng.sample(range(10), rng.randint(2, 4)))
        target = rng.randrange(len(digits))
        shown.append(digits)
        targets.append(target)
        chosen.append(pick(rng, recordings, digits[target]))
        scenes.append(draw_frame(rng, written, digits))
    places = torch.tensor(chosen)
    return Sounding(
        torch.from_numpy(np.stack([scene.pixels for scene in scenes])),
        torch.from_numpy(np.stack([scene.owner for scene in scenes])),
        Seconds(recordings, places[:, 0], places[:, 1]),
        torch.tensor(targets),
        torch.tensor([digits[target] for digits, target in zip(shown, targets, strict=True)]),
        tuple(shown),
        tuple(recordings.speakers[number] for number, _ in chosen),
    )
