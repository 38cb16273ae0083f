"""Seconds of sound: a recording somewhere in each, under a little noise."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayes_adapters.backbones import SAMPLE_RATE
from examples.av_events.recordings import Recordings

NOISE = 0.002
"""Root mean square of the white noise: 34 dB below the words."""


@dataclass(frozen=True, eq=False)
class Seconds:
    """Sound of one second each, of any leading shape.

    Args:
        source: the recordings.
        recording: int64: which is heard; -1 where none is.
        start: int64: the sample it begins at, 0 to 16,000 less its length.
    """

    source: Recordings
    recording: Int[Tensor, "*shape"]
    start: Int[Tensor, "*shape"]

    def waves(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B *shape 16000"]:
        """Return the waveforms at these rows of the first dimension, float32, 16 kHz; noise is the row's own."""
        shape = (*self.recording.shape[1:], SAMPLE_RATE)
        out = []
        for row in rows.tolist():
            generator = torch.Generator().manual_seed(row)
            page = NOISE * torch.randn(shape, generator=generator)
            flat = page.reshape(-1, SAMPLE_RATE)
            pairs = zip(self.recording[row].reshape(-1).tolist(), self.start[row].reshape(-1).tolist(), strict=True)
            for second, (number, first) in enumerate(pairs):
                if number >= 0:
                    wave = self.source.waves[number]
                    flat[second, first : first + len(wave)] += wave
            out.append(page)
        return torch.stack(out)


def pick(rng: random.Random, source: Recordings, digit: int | None) -> tuple[int, int]:
    """Draw (recording, start) of a second in which the digit is heard; (-1, 0) where it is None."""
    if digit is None:
        return -1, 0
    number = rng.choice(source.of(digit))
    return number, rng.randint(0, max(0, SAMPLE_RATE - len(source.waves[number])))
