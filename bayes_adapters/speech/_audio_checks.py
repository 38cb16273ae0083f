"""What reading a recording refuses."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, MissingResourceError, missing_package

FORMATS = "wav, aiff, flac, ogg, opus or mp3"
"""What recordings may be, in words."""
_UNKNOWN_FRAMES = 2**63 - 1  # what libsndfile says of a flac or ogg that does not give its length
_SILENT = 1e-4


def require_rate(sample_rate: int) -> None:
    """Raise :class:`ConfigError` unless the sample rate is positive."""
    if sample_rate <= 0:
        raise ConfigError(f"sample_rate must be a positive number of samples per second; got {sample_rate}.")


def require_file(path: Path) -> None:
    """Raise :class:`DataError` unless ``path`` is a file that can be opened."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise DataError(f"Cannot read audio: {str(path)!r} {what}. Give the path of one {FORMATS} file.")
    try:
        path.open("rb").close()
    except OSError as error:  # libsndfile says "System error" only
        raise DataError(f"Cannot read audio: {str(path)!r} cannot be opened: {error.strerror}.") from error


def require_soundfile() -> ModuleType:
    """Return the module soundfile; raise :class:`MissingResourceError` where it is missing or cannot be loaded."""
    try:
        return importlib.import_module("soundfile")
    except ModuleNotFoundError as error:
        raise missing_package("Reading audio files", "soundfile", "audio") from error
    except OSError as error:  # the package is there, libsndfile is not
        raise MissingResourceError(
            f"soundfile is installed but libsndfile cannot be loaded ({error}). Install both from a checkout of "
            "bayes-adapters: pip install --force-reinstall '.[audio]'"
        ) from error


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Turn libsndfile's errors on opening ``path`` into :class:`DataError`."""
    try:
        yield
    except (RuntimeError, TypeError) as error:  # libsndfile's own errors; TypeError for headerless .raw files
        raise DataError(
            f"Cannot read {str(path)!r} ({path.stat().st_size} bytes) as audio: {error} "
            f"Is it really {FORMATS}? Convert other formats first, for example with ffmpeg."
        ) from error


@contextmanager
def reading(path: Path, frames: int, channels: int) -> Iterator[None]:
    """Turn errors on reading ``frames`` samples per channel of ``path`` into :class:`DataError`."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"Cannot read {str(path)!r} ({path.stat().st_size} bytes): its header promises {frames} samples per "
            f"channel, and reading them failed: {error} It is cut off or damaged; copy or export the file again."
        ) from error
    except MemoryError as error:
        raise DataError(
            f"{str(path)!r} does not fit into this machine's memory: {frames} samples per channel, {channels} "
            "channels. Cut it into shorter pieces."
        ) from error


def require_length(path: Path, frames: int, rate: int, low: float, high: float | None) -> None:
    """Raise :class:`DataError` unless the header gives a length, and that of ``low`` to ``high`` seconds."""
    if frames == _UNKNOWN_FRAMES:
        raise DataError(
            f"{str(path)!r} does not say how long it is, as programs that write to a pipe leave it. Give it a "
            "length first, for example: ffmpeg -i in.flac out.wav"
        )
    seconds = frames / rate
    if frames == 0:
        raise DataError(f"{str(path)!r} is empty: it holds 0 samples. Was the recording stopped before it began?")
    if seconds < low:
        raise DataError(
            f"{str(path)!r} is too short: {seconds:.3f} s ({frames} samples at {rate} Hz), at least {low:g} s are "
            "needed. Was it cut off? Record it again, or leave it out."
        )
    if high is not None and frames > high * rate + 1:
        raise DataError(
            f"{str(path)!r} is too long: {seconds:.3f} s ({frames} samples at {rate} Hz), at most {high:g} s are "
            "allowed. Cut it into shorter pieces."
        )


def require_whole(path: Path, frames: int, found: int, cut_off: str | None) -> None:
    """Raise :class:`DataError` where fewer samples were ``found`` than promised, or ``cut_off`` says what is missing.

    Args:
        path: of the recording, for the error.
        frames: samples per channel that the header promises.
        found: samples per channel that were read.
        cut_off: what the log says of a missing end, if anything.
    """
    if found < frames:
        cut_off = f"its header promises {frames} samples per channel and {found} were read"
    if cut_off:
        raise DataError(f"{str(path)!r} is cut off: {cut_off}. Copy or export the file again.")


def require_finite(path: Path, wave: Float[Tensor, "N channels"]) -> None:
    """Raise :class:`DataError` where a sample is NaN or infinite."""
    bad = int((~torch.isfinite(wave)).sum())
    if bad:
        raise DataError(
            f"{str(path)!r} holds {bad} NaN or infinite samples of {wave.numel()}. A float wav written by a faulty "
            "effect does this; export it again or drop the recording."
        )


def refuse_silence(path: str | Path, wave: Float[Tensor, " N"]) -> None:
    """Raise if a recording is silent: its standard deviation is below 1e-4, −80 dB of full scale.

    The dither of a silent 16-bit file is below that. 10 ms at each end do not count, nor does what resampling makes of
    a constant offset.

    Args:
        path: of the recording, for the error.
        wave: shape (N,), from :func:`bayes_adapters.speech.audio.read_audio`.

    Raises:
        DataError: it is silent.
    """
    inner = wave[160:-160] if wave.numel() > 320 else wave
    level = float(inner.std(correction=0)) - 1e-3 * abs(float(inner.mean()))
    if level >= _SILENT:
        return
    said = f"{20 * math.log10(level):.0f} dB of full scale" if level > 0 else "all its samples are equal"
    raise DataError(
        f"{str(path)!r} holds no speech: it is silent ({said}). Was the microphone off, or do two channels cancel each "
        "other? A model would guess from the script alone."
    )
