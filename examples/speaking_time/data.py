"""Scripts and how long a voice takes to say them, measured on studio recordings; and texts of other kinds.

The recordings are the English telephone prompts of :mod:`examples.verify_prompts.prompts`: one speaker, 0.1 to 5
seconds. A recording begins and ends with silence, 0.25 s together in the median, which nobody says: the target is the
time from the first sound to the last.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bayes_adapters.errors import DataError
from examples.training_free import PACKAGES, docstrings
from examples.verify_prompts.prompts import LANGUAGES, Prompt, load_prompts, make_splits, normalise

QUIET = -50.0
"""dB below the loudest hundredth of a second: what is quieter is silence. At −40 dB the s and th at the ends of words
are cut off."""
_LONGEST = 5.0  # seconds; what make_splits has always been given
_EACH = 60  # texts of each kind that is not English prompts


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

    ``elsewhere`` has 60 scripts of each other language (same prompts, other words), the English prompts of more than
    5 s, and 60 docstrings of Python's standard library, all spread evenly over what there is.

    Args:
        split_seed: see :func:`examples.verify_prompts.prompts.make_splits`.

    Raises:
        MissingResourceError: the prompts are neither in the cache nor to be fetched.
    """
    english = load_prompts(("en",), max_seconds=_LONGEST)
    found = make_splits(english, split_seed)
    known = {prompt.key: prompt for prompt in english}
    short = {normalise(prompt.text) for prompt in english}
    longer = [p.text for p in load_prompts(("en",), min_seconds=_LONGEST, max_seconds=60.0) if p.key not in known]
    elsewhere = {"en-long": tuple(sorted({text for text in longer if normalise(text) not in short}))}
    for language in LANGUAGES[1:]:
        elsewhere[language] = _spread([prompt.text for prompt in load_prompts((language,))])
    elsewhere["docstrings"] = _spread([text for package in PACKAGES for text in docstrings(package)])
    parts = (found.train, found.validation, found.test)
    train, validation, test = (_measured([known[key] for key in part]) for part in parts)
    return Data(train, validation, test, elsewhere)


def _measured(prompts: Sequence[Prompt]) -> tuple[Spoken, ...]:
    return tuple(Spoken(p.key, p.text, speech_seconds(p.path)) for p in prompts)


def _spread(texts: Sequence[str]) -> tuple[str, ...]:
    different = sorted(set(texts))
    return tuple(different[i * len(different) // _EACH] for i in range(min(_EACH, len(different))))
