"""Spoken digits by speaker: the Free Spoken Digit Dataset as one NumPy file, or tones made here for tests.

The file holds the recordings of the repository ``Jakobovski/free-spoken-digit-dataset`` (CC BY-SA 4.0) one after the
other::

    audio (samples,) int16   rate () samples per second   length (N,) samples of each recording
    digit (N,) 0 to 9        speaker (N,) text            take (N,) number
"""

from __future__ import annotations

import itertools
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.backbones import SAMPLE_RATE, cache_folder
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError, whole_number
from bayes_adapters.speech.resampling import resample

_NEEDED = {"audio": "i", "rate": "iu", "length": "iu", "digit": "iu", "speaker": "U", "take": "iu"}


@dataclass(frozen=True, eq=False)
class Recordings:
    """N spoken digits.

    Args:
        waves: of shape (samples,), float32, -1 to 1, 16 kHz.
        digits: what is said, 0 to 9.
        speakers: by whom.
    """

    waves: tuple[Float[Tensor, " samples"], ...]
    digits: tuple[int, ...]
    speakers: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.waves)

    def by(self, speakers: Sequence[str]) -> Recordings:
        """Return the recordings of some speakers.

        Raises:
            ConfigError: somebody of them said nothing.
        """
        if missing := sorted(set(speakers) - set(self.speakers)):
            raise ConfigError(f"{missing} are no speakers of these recordings; there are {sorted(set(self.speakers))}.")
        rows = [row for row, speaker in enumerate(self.speakers) if speaker in speakers]
        picked = (tuple(part[row] for row in rows) for part in (self.waves, self.digits, self.speakers))
        return Recordings(*picked)  # type: ignore[arg-type]

    def of(self, digit: int) -> list[int]:
        """Return the numbers of the recordings of a digit."""
        return [row for row, said in enumerate(self.digits) if said == digit]


def default_path() -> Path:
    """Where the file is looked for when no other is named: ``av_events/fsdd8k.npz`` in the cache folder."""
    return cache_folder() / "av_events" / "fsdd8k.npz"


def load(path: Path | None = None, seconds: float = 1.0) -> Recordings:
    """Load the recordings, at 16 kHz, each cut to at most ``seconds`` and brought to one loudness.

    A recording is scaled to a root mean square of 0.1, or less where samples would exceed 1.

    Args:
        path: the file; :func:`default_path` when not given.
        seconds: what is longer loses its end: 1 % of the recordings at one second.

    Raises:
        MissingResourceError: there is no such file.
        DataError: it is no such file, or its arrays do not fit one another.
    """
    path = default_path() if path is None else path
    if not path.is_file():
        raise MissingResourceError(
            f"There is no file {path} of spoken digits. Clone the GitHub repository "
            "Jakobovski/free-spoken-digit-dataset and put its recordings into one NumPy file, as "
            "examples/av_events/recordings.py describes it. A file that lies elsewhere is named with --data."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a NumPy .npz file without pickled objects: {error}") from error
    _check(arrays, path)
    rate = int(arrays["rate"])
    starts = np.concatenate([[0], np.cumsum(arrays["length"])])
    kept = round(seconds * rate)
    raw = [arrays["audio"][start : min(start + kept, end)] for start, end in itertools.pairwise(starts)]
    waves = tuple(_level(resample(torch.from_numpy(one.astype(np.float32) / 32768), rate, SAMPLE_RATE)) for one in raw)
    return Recordings(waves, tuple(arrays["digit"].tolist()), tuple(arrays["speaker"].tolist()))


def _level(wave: Float[Tensor, " samples"]) -> Float[Tensor, " samples"]:
    rms, peak = float(wave.square().mean().sqrt()), float(wave.abs().max())
    return wave * min(0.1 / max(rms, 1e-6), 1 / max(peak, 1e-6))


def _check(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    if missing := [name for name in _NEEDED if name not in arrays]:
        raise DataError(f"{path} lacks {missing}; it holds {sorted(arrays)}. See the module's docstring.")
    for name, kinds in _NEEDED.items():
        if arrays[name].dtype.kind not in kinds:
            raise DataError(f"{name!r} in {path} is {arrays[name].dtype}; see the module's docstring.")
    count, total = len(arrays["length"]), int(arrays["length"].sum())
    if total != len(arrays["audio"]) or any(len(arrays[name]) != count for name in ("digit", "speaker")):
        raise DataError(
            f"{path}: {count} lengths of {total} samples in all, {len(arrays['audio'])} samples, "
            f"{len(arrays['digit'])} digits and {len(arrays['speaker'])} speakers do not fit one another. Was the "
            "file cut off?"
        )
    if not np.isin(arrays["digit"], np.arange(10)).all() or (arrays["length"] < 1).any():
        raise DataError(f"{path} has digits outside 0 to 9, or recordings without a sample.")


def tones(speakers: Sequence[str] = ("a", "b", "c"), takes: int = 2, seconds: float = 0.3) -> Recordings:
    """Return tones instead of words, for tests: a digit is a pitch, a speaker an overtone.

    Args:
        speakers: names.
        takes: recordings per speaker and digit; later ones are softer.
        seconds: how long.

    >>> len(tones()), tones().waves[0].shape
    (60, torch.Size([4800]))
    """
    whole_number("takes", takes)
    time = torch.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    waves, digits, said_by = [], [], []
    for number, speaker in enumerate(speakers):
        for digit in range(10):
            for take in range(takes):
                pitch = 200 * 1.2**digit
                wave = sum(torch.sin(2 * math.pi * pitch * k * time) / k for k in (1, 2 + number))
                waves.append(torch.as_tensor(0.2 / (1 + take) * wave).float())
                digits.append(digit)
                said_by.append(speaker)
    return Recordings(tuple(waves), tuple(digits), tuple(said_by))
