"""Scripts and how long a voice takes to say them, measured on studio recordings; and texts of other kinds.

The recordings are the English telephone prompts of :mod:`examples.studies.verify_prompts.prompts`: one speaker, 0.1 to
5 seconds. A recording begins and ends with silence, 0.16 s together in the median, which nobody says: the target is the
time from the first sound to the last.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from bayes_adapters.errors import DataError
from examples.studies.training_free import PACKAGES, docstrings
from examples.studies.verify_prompts.prompts import LANGUAGES, Prompt, load_prompts, make_splits, normalise

_T = TypeVar("_T")
QUIET = -50.0
"""dB below the loudest hundredth of a second: what is quieter is silence. At −40 dB the s and th at the ends of words
are cut off."""
_LONGEST = 5.0  # seconds; what make_splits has always been given
_EACH = 24  # texts of each kind that is not English prompts


@dataclass(frozen=True)
class Spoken:
    """One script and the time its recording takes to say it.

    Args:
        key: the prompt's name, as in :class:`Prompt`.
        text: the script.
        seconds: from the first sound to the last, in s.
    """

    key: str
    text: str
    seconds: float

    @property
    def script(self) -> str:
        """Lower-case words without punctuation; recordings of one script share it."""
        return normalise(self.text)


@dataclass(frozen=True)
class Data:
    """Splits of English prompts of at most 5 s, no script in two of them; and texts of other kinds.

    Args:
        train: to train on.
        validation: to choose on.
        test: to report on.
        elsewhere: kind → texts; no model is trained on any.
    """

    train: tuple[Spoken, ...]
    validation: tuple[Spoken, ...]
    test: tuple[Spoken, ...]
    elsewhere: dict[str, tuple[str, ...]]


def speech_seconds(path: Path, quiet: float = QUIET) -> float:
    """Return the time from the first sound to the last, in s, a multiple of 0.01.

    A hundredth of a second is sound if its root mean square is more than ``quiet`` dB (below 0) relative to the loudest
    one's.

    Args:
        path: a mono wav file of 16-bit samples.
        quiet: in dB, below 0.

    Raises:
        DataError: another kind of wav file, or one without any sound.
    """
    with wave.open(str(path), "rb") as file:
        if file.getnchannels() != 1 or file.getsampwidth() != 2:
            raise DataError(
                f"{path.name} has {file.getnchannels()} channels of {8 * file.getsampwidth()} bits; one channel of 16 "
                "bits is needed. Convert it first."
            )
        rate, raw = file.getframerate(), file.readframes(file.getnframes())
    size = rate // 100
    samples = torch.frombuffer(bytearray(raw), dtype=torch.int16).double() if raw else torch.zeros(0).double()
    power = samples[: len(samples) // size * size].reshape(-1, size).square().mean(1)
    if not bool(power.any()):
        raise DataError(f"{path.name} holds no sound, so there is no speech to measure. Leave it out.")
    loud = (power > power.max() * 10 ** (quiet / 10)).nonzero().flatten()
    return (int(loud[-1]) - int(loud[0]) + 1) * size / rate


def load(split_seed: int = 0) -> Data:
    """Fetch the prompts once, measure the English ones, split them by script, and collect texts of other kinds.

    ``elsewhere`` has 24 English prompts of more than 5 s, 24 scripts of each other language (the same prompts in other
    words) and 24 docstrings of Python's standard library, spread evenly over the sorted texts; none is a script of the
    splits.

    Args:
        split_seed: see :func:`examples.studies.verify_prompts.prompts.make_splits`.

    Raises:
        MissingResourceError: the prompts are neither in the cache nor to be fetched.
    """
    english = load_prompts(("en",), max_seconds=_LONGEST)
    found = make_splits(english, split_seed)
    known = {prompt.key: prompt for prompt in english}
    short = {normalise(prompt.text) for prompt in english}
    longer = load_prompts(("en",), min_seconds=_LONGEST, max_seconds=60.0)
    kinds = {"en-long": [prompt.text for prompt in longer]}
    kinds |= {language: [prompt.text for prompt in load_prompts((language,))] for language in LANGUAGES[1:]}
    kinds["docstrings"] = [text for package in PACKAGES for text in docstrings(package)]
    elsewhere = {
        kind: _every(sorted({text for text in texts if normalise(text) not in short}), _EACH)
        for kind, texts in kinds.items()
    }
    parts = (found.train, found.validation, found.test)
    train, validation, test = (_measured([known[key] for key in part]) for part in parts)
    return Data(train, validation, test, elsewhere)


def shortened(data: Data, rows: int) -> Data:
    """Return every k-th row of each split, ``rows`` for training and a third of that for validation and test, at most.

    Args:
        data: what :func:`load` returned; texts of other kinds stay.
        rows: at least 3.

    Raises:
        DataError: fewer than 3 rows are wanted.
    """
    if rows < 3:
        raise DataError(f"Validation and test get a third of rows, so it must be at least 3; got {rows}.")
    third = rows // 3
    return Data(_every(data.train, rows), _every(data.validation, third), _every(data.test, third), data.elsewhere)


def _measured(prompts: Sequence[Prompt]) -> tuple[Spoken, ...]:
    return tuple(Spoken(p.key, p.text, speech_seconds(p.path)) for p in prompts)


def _every(rows: Sequence[_T], most: int) -> tuple[_T, ...]:
    count = min(most, len(rows))
    return tuple(rows[i * len(rows) // count] for i in range(count))
