"""Splits of clips and sounding scenes in which no speaker, recording or written digit is in two."""

from __future__ import annotations

from dataclasses import dataclass

from bayes_adapters.errors import ConfigError, whole_number
from examples.av_events.digits import Written
from examples.av_events.events import Clips, make_clips
from examples.av_events.recordings import Recordings
from examples.av_events.sounding import Sounding, make_sounding

PARTS = 5
"""Written digits are cut into so many parts: three for training (and pre-training), one each for the other splits."""


@dataclass(frozen=True)
class Sizes:
    """Clips, and sounding scenes, of each split."""

    train: int = 400
    validation: int = 60
    test: int = 120
    sounding_train: int = 1500
    sounding_validation: int = 150
    sounding_test: int = 300


@dataclass(frozen=True, eq=False)
class Split:
    """What one split holds.

    Args:
        clips: for events.
        sounding: for masks.
        people: whose voices they are.
    """

    clips: Clips
    sounding: Sounding
    people: tuple[str, ...]


def fold(people: tuple[str, ...], seed: int) -> dict[str, tuple[str, ...]]:
    """Return who is in which split: one speaker in test, the next in validation, the others in training.

    Seeds 0 to n - 1 test each of n speakers once.

    Raises:
        ConfigError: fewer than three speakers, or a seed below 0.

    >>> fold(("a", "b", "c", "d"), 3)
    {'train': ('b', 'c'), 'validation': ('a',), 'test': ('d',)}
    """
    whole_number("seed", seed, least=0)
    people = tuple(sorted(set(people)))
    if len(people) < 3:
        raise ConfigError(f"Three splits need at least 3 speakers; got {list(people)}.")
    test, validation = people[seed % len(people)], people[(seed + 1) % len(people)]
    rest = tuple(person for person in people if person not in (test, validation))
    return {"train": rest, "validation": (validation,), "test": (test,)}


def splits(recordings: Recordings, written: Written, seed: int, sizes: Sizes | None = None) -> dict[str, Split]:
    """Make the splits of a seed: train, validation and test.

    Args:
        recordings: every speaker has all digits.
        written: has every digit at least :data:`PARTS` times.
        seed: which speakers are tested, and what is drawn.
        sizes: how many clips and scenes.

    Raises:
        ConfigError: fewer than three speakers, or a size below 1.
    """
    sizes = Sizes() if sizes is None else sizes
    ink = {"train": written.part(0, PARTS, 3), "validation": written.part(3, PARTS), "test": written.part(4, PARTS)}
    made = {}
    for name, people in fold(recordings.speakers, seed).items():
        said, start = recordings.by(people), f"{name}/{seed}"
        clips = make_clips(said, ink[name], getattr(sizes, name), f"clips/{start}")
        sounding = make_sounding(said, ink[name], getattr(sizes, f"sounding_{name}"), f"sounding/{start}")
        made[name] = Split(clips, sounding, people)
    return made
