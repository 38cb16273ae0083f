"""Clips of ten seconds, in which an event is where the digit heard is the digit seen."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from bayes_adapters.errors import whole_number
from examples.av_events.digits import Written
from examples.av_events.frames import draw_frame
from examples.av_events.recordings import Recordings
from examples.av_events.sounds import Seconds, pick

SEGMENTS = 10
BACKGROUND = 10
"""The label of a segment without event, after the ten digits."""
NOTHING = -1
"""Of ``heard`` and ``seen``: no digit."""


@dataclass(frozen=True, eq=False)
class Clips:
    """N clips of ten segments.

    Args:
        frames: shape (N, 10, 3, 64, 64), uint8: one per segment.
        sounds: one second per segment: ``sounds.waves(rows)`` is (B, 10, 16000).
        heard: shape (N, 10), int64: 0 to 9, or -1.
        seen: shape (N, 10), int64: 0 to 9, or -1.
        speakers: of each clip.
    """

    frames: UInt8[Tensor, "N 10 3 64 64"]
    sounds: Seconds
    heard: Int[Tensor, "N 10"]
    seen: Int[Tensor, "N 10"]
    speakers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.speakers)

    @property
    def labels(self) -> Int[Tensor, "N 10"]:
        """Shape (N, 10), int64: the digit where the same is heard and seen, else :data:`BACKGROUND`."""
        return torch.where((self.heard == self.seen) & (self.heard != NOTHING), self.heard, BACKGROUND)


def make_clips(recordings: Recordings, written: Written, count: int, seed: str | int) -> Clips:
    """Make clips, each of one speaker and with one event of two to eight segments in a row.

    Half of the segments outside the event have one digit heard and another seen; a sixth each have a digit heard, a
    digit seen, or nothing. A digit that is alone there, and the one heard of two, is the event's in half of the cases.
    So who only looks, and takes every digit for an event, is right in two thirds of the segments.

    Args:
        recordings: every speaker has all digits.
        written: has all digits.
        count: N.
        seed: clip n depends on ``seed`` and n alone.

    Raises:
        ConfigError: ``count`` is below 1.

    >>> from examples.av_events.digits import strokes
    >>> from examples.av_events.recordings import tones
    >>> clips = make_clips(tones(), strokes(), 2, seed=0)
    >>> clips.frames.shape, clips.sounds.waves(torch.arange(2)).shape
    (torch.Size([2, 10, 3, 64, 64]), torch.Size([2, 10, 16000]))
    """
    whole_number("count", count)
    frames, chosen, heard, seen, speakers = [], [], [], [], []
    people = sorted(set(recordings.speakers))
    by = {person: recordings.by([person]) for person in people}
    own = {person: [i for i, speaker in enumerate(recordings.speakers) if speaker == person] for person in people}
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        person = rng.choice(people)
        plan = _plan(rng)
        speakers.append(person)
        heard.append([NOTHING if a is None else a for a, _ in plan])
        seen.append([NOTHING if b is None else b for _, b in plan])
        picked = [pick(rng, by[person], a) for a, _ in plan]
        chosen.append([(own[person][i] if i >= 0 else i, first) for i, first in picked])
        frames.append([draw_frame(rng, written, [] if b is None else [b]).pixels for _, b in plan])
    places = torch.tensor(chosen)
    return Clips(
        torch.from_numpy(np.array(frames)),
        Seconds(recordings, places[..., 0], places[..., 1]),
        torch.tensor(heard),
        torch.tensor(seen),
        tuple(speakers),
    )


def _plan(rng: random.Random) -> list[tuple[int | None, int | None]]:
    """Return (heard, seen) of each segment."""
    event, length = rng.randrange(10), rng.randint(2, 8)
    first = rng.randint(0, SEGMENTS - length)
    return [(event, event) if first <= i < first + length else _outside(rng, event) for i in range(SEGMENTS)]


def _outside(rng: random.Random, event: int) -> tuple[int | None, int | None]:
    other = rng.choice([digit for digit in range(10) if digit != event])
    one = event if rng.random() < 0.5 else other
    state = rng.randrange(6)
    if state >= 3:
        return one, rng.choice([digit for digit in range(10) if digit != one])
    return (one if state == 1 else None), (one if state == 2 else None)
