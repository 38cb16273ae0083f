"""The study's two tasks as tensors: which digit is an event in each segment, and which pixels show the spoken digit.

Two speakers are heard in tests only. Of the others' recordings of a digit every fifth is for tests and every fifth for
validation; so are the written digits. So there are three tests: the speakers of training (``seen``), the same examples
under white noise (``noise``), and the other two speakers (``unseen``). Data do not depend on the training seed, so that
every seed is tested on the same units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayes_adapters import Batch, Tagging
from bayes_adapters.backbones import SAMPLE_RATE
from bayes_adapters.errors import ConfigError
from bayes_adapters.likelihoods import Likelihood, Masks
from examples.av_events.data import PARTS
from examples.av_events.digits import Written
from examples.av_events.events import BACKGROUND, SEGMENTS, make_clips
from examples.av_events.frames import FRAME
from examples.av_events.nets import Nets
from examples.av_events.recordings import Recordings
from examples.av_events.sounding import make_sounding
from examples.av_events.sounds import Seconds

SEEN, NOISE, UNSEEN = CONDITIONS = ("seen", "noise", "unseen")
"""What is tested; the first is what the others' uncertainty is told apart from."""


class Task(StrEnum):
    """What is asked."""

    EVENTS = "events"
    """Of each of ten segments: the digit that is both heard and seen, or background."""
    MASKS = "masks"
    """Of each pixel of a frame of several digits: whether it shows the one that is spoken."""


@dataclass(frozen=True)
class Settings:
    """What is the same for every method.

    Args:
        clips, frames: training examples of the two tasks.
        tested, tested_frames: examples of each test; half as many for validation.
        seconds: how much of a second Whisper hears; a longer word loses its end.
        noise: root mean square of the white noise in ``noise``; words have 0.1, so 0.1 is 0 dB.
        unseen: speakers that are heard in tests only.
        blocks: how many of the uppermost blocks of both encoders are adapted.
        rank, gamma, gain: of CoLA: r of both paths, the reduction of a descriptor, and λ at the start.
        head: hidden units of the head, a ReLU behind them.
        fusion_rank, terms, length, width: of Wander: r, R, L of both encoders, and the width they are brought to.
        epochs, batch_size, lr: of AdamW, warmed up over a tenth of the steps, then linear; the epoch with the lowest
            validation NLL is kept. A batch has so many segments, or frames.
        kl_weight: of Bayesian CoLA, per token and layer.
        samples: posterior draws at test.
        detail: cells of a mask per patch and side.
    """

    clips: int = 160
    frames: int = 1200
    tested: int = 60
    tested_frames: int = 200
    seconds: float = 0.6
    noise: float = 0.1
    unseen: int = 2
    blocks: int = 2
    rank: int = 8
    gamma: int = 16
    gain: float = 0.1
    head: int = 128
    fusion_rank: int = 16
    terms: int = 4
    length: int = 16
    width: int = 128
    epochs: int = 5
    batch_size: int = 40
    lr: float = 1e-3
    kl_weight: float = 1e-4
    samples: int = 4
    detail: int = 4

    @property
    def window(self) -> int:
        """Samples that Whisper hears."""
        return round(self.seconds * SAMPLE_RATE)


@dataclass(frozen=True, eq=False)
class Examples:
    """N examples of a task, as the upper halves of the encoders take them (:mod:`examples.studies.halves`).

    Args:
        task: which.
        vision: states of the frames, shape (N, 10, n, d) for events and (N, n, d) for masks, float32.
        audio: states of the sounds, likewise.
        targets: shape (N, 10), 0 to 10, or (N, 64, 64), 0 or 1, int64.
        speakers: of each example.
    """

    task: Task
    vision: Float[Tensor, "N *T n d"]
    audio: Float[Tensor, "N *T n d"]
    targets: Int[Tensor, "N L *more"]
    speakers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.speakers)

    def batch(self, rows: Int[Tensor, " B"]) -> Batch:
        """Return the examples at ``rows``, int64, as a batch of the encoders ``vision`` and ``audio``."""
        inputs = {"vision.states": self.vision[rows], "audio.states": self.audio[rows]}
        return Batch(inputs, self.targets[rows], index=rows)


class Batches:
    """Batches of examples, in another order each epoch.

    Args:
        data: the examples.
        batch_size: segments, or frames, of a batch; at least one example.
        seed: of the order; None keeps it.
    """

    def __init__(self, data: Examples, batch_size: int, seed: int | None) -> None:
        self.data, self.seed, self.epoch = data, seed, 0
        self.size = max(1, batch_size // (SEGMENTS if data.task is Task.EVENTS else 1))

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def identity(self) -> dict[str, Any]:
        """What decides the batches, for checkpoints."""
        return {"task": self.data.task.value, "examples": len(self.data), "seed": self.seed, "size": self.size}

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self.data))
        if self.seed is not None:
            order = torch.randperm(
                len(order), generator=torch.Generator().manual_seed(1_000_003 * self.seed + self.epoch)
            )
        for rows in order.split(self.size):
            yield self.data.batch(rows)


DICE = 100.0
"""Weight of Dice, nats: about what the cells of a mask weigh together, as in the sum of both means that is usual."""


def likelihood_of(task: Task, grid: int, detail: int) -> Likelihood:
    """Return the task's likelihood; a mask's evidence is counted per cell, and Dice is a loss beside it.

    Args:
        task: which.
        grid: patches of a frame per side.
        detail: cells per patch and side.
    """
    if task is Task.EVENTS:
        return Tagging(BACKGROUND + 1)
    return Masks(grid=(grid, grid), size=(FRAME, FRAME), detail=detail, dice_weight=DICE)


def part_of(recordings: Recordings, people: tuple[str, ...], first: int, count: int = 1) -> Recordings:
    """Return ``count`` of :data:`~examples.av_events.data.PARTS` parts of what some speakers said, from ``first`` on.

    Of the recordings of a speaker and digit, in their order, the i-th is in part ``i % PARTS``.

    Raises:
        ConfigError: a speaker has no recording of some digit there.
    """
    said: Counter[tuple[str, int]] = Counter()
    rows = []
    for row, key in enumerate(zip(recordings.speakers, recordings.digits, strict=True)):
        if key[0] in people and first <= said[key] % PARTS < first + count:
            rows.append(row)
        said[key] += 1
    picked = (tuple(part[row] for row in rows) for part in (recordings.waves, recordings.digits, recordings.speakers))
    found = Recordings(*picked)  # type: ignore[arg-type]
    there = set(zip(found.speakers, found.digits, strict=True))
    if missing := sorted({(person, digit) for person in people for digit in range(10)} - there):
        raise ConfigError(
            f"Part {first} of {PARTS} lacks recordings of (speaker, digit) {missing[:5]}. Every speaker needs at least "
            f"{PARTS} recordings of every digit."
        )
    return found


def heard(sounds: Seconds, window: int, noise: float = 0.0) -> Float[Tensor, "N *T window"]:
    """Return the waveforms of all examples within a shorter window, float32, 16 kHz.

    A word that began at sample s of the 16,000 and lasts n begins at ``s (window − n) / (16,000 − n)``.

    Args:
        sounds: of full seconds; no word is longer than the window.
        window: samples.
        noise: root mean square of white noise that is added; it is the example's own.
    """
    lengths = torch.tensor([*(len(wave) for wave in sounds.source.waves), 0])[sounds.recording]  # −1: no word
    start = sounds.start * (window - lengths) // (SAMPLE_RATE - lengths)
    waves = replace(sounds, start=start).waves(torch.arange(len(start)))[..., :window]
    if noise:
        source = torch.Generator().manual_seed(10_007)
        waves = waves + noise * torch.randn(waves.shape, generator=source)
    return waves


def examples(
    task: Task,
    recordings: Recordings,
    written: Written,
    count: int,
    name: str,
    nets: Nets,
    settings: Settings,
) -> tuple[Examples, Seconds]:
    """Make examples of a task; their sounds are returned as well.

    Args:
        task: which.
        recordings: have all digits, none longer than ``settings.seconds``.
        written: has all digits.
        count: N.
        name: what is drawn depends on it.
        nets: both encoders.
        settings: see there.
    """
    seed = f"{task}/{name}"
    if task is Task.EVENTS:
        clips = make_clips(recordings, written, count, seed)
        frames, sounds, targets, speakers = clips.frames, clips.sounds, clips.labels, clips.speakers
    else:
        some = make_sounding(recordings, written, count, seed)
        frames, sounds, speakers = some.frames, some.sounds, some.speakers
        targets = some.masks(torch.arange(count)).long()
    vision = nets.see(frames, settings.blocks)
    return Examples(task, vision, nets.hear(heard(sounds, settings.window), settings.blocks), targets, speakers), sounds


def parts(task: Task, recordings: Recordings, written: Written, nets: Nets, settings: Settings) -> dict[str, Examples]:
    """Return ``train``, ``validation`` and the three tests.

    Raises:
        ConfigError: nobody is left beside the unseen speakers, or there are too few recordings.
    """
    people = tuple(sorted(set(recordings.speakers)))
    if len(people) <= settings.unseen:
        raise ConfigError(
            f"{settings.unseen} speakers are for tests only, and there are {list(people)}. Take more speakers, or "
            "fewer unseen ones."
        )
    unseen, own = people[: settings.unseen], people[settings.unseen :]
    events = task is Task.EVENTS
    count, tested = (settings.clips, settings.tested) if events else (settings.frames, settings.tested_frames)
    plan = {
        "train": (part_of(recordings, own, 0, 3), written.part(0, PARTS, 3), count),
        "validation": (part_of(recordings, own, 3), written.part(3, PARTS), max(1, tested // 2)),
        SEEN: (part_of(recordings, own, 4), written.part(4, PARTS), tested),
        UNSEEN: (recordings.by(unseen), written.part(4, PARTS), tested),
    }
    made = {name: examples(task, *source, name, nets, settings) for name, source in plan.items()}
    plain, sounds = made[SEEN]
    noisy = nets.hear(heard(sounds, settings.window, settings.noise), settings.blocks)
    return {name: own for name, (own, _) in made.items()} | {NOISE: replace(plain, audio=noisy)}
