"""Reading a user's recordings: any common file, any sample rate, mono or stereo, into one float32 waveform.

Needs the ``audio`` extra. The packages are imported on first use, so ``import bayes_adapters`` works without them.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, MissingResourceError

SAMPLE_RATE = 16_000
_INSTALL = 'pip install "bayes-adapters[audio]"'
_UNKNOWN_BYTES = 0x7FFF0000
_PAIR = "torch>=2.11,<2.13 with torchaudio>=2.11,<2.12"


def read_audio(
    path: str | Path,
    *,
    sample_rate: int = SAMPLE_RATE,
    min_seconds: float = 0.1,
    max_seconds: float | None = None,
) -> Float[Tensor, " N"]:
    """Read one recording as a mono waveform at ``sample_rate``.

    Channels are averaged; another sample rate is resampled with a windowed sinc.

    Args:
        path: a file that libsndfile reads (wav, flac, ogg, mp3, aiff, …).
        sample_rate: samples per second of the result.
        min_seconds: shortest recording accepted, in seconds.
        max_seconds: longest recording accepted, in seconds; ``None`` accepts any length. A sample more, as rounding
            makes it, is left out.

    Returns:
        Shape (N,), float32, full scale is -1 … 1, ``N`` = seconds × ``sample_rate`` rounded up.

    Raises:
        DataError: the file is absent, not readable, no audio, empty, cut off, too short, too long, or holds NaN or
            infinity.
        MissingResourceError: soundfile or torchaudio is missing or cannot be loaded.
    """
    if sample_rate <= 0:
        raise ConfigError(f"sample_rate must be a positive number of samples per second; got {sample_rate}.")
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise DataError(f"Cannot read audio: {str(path)!r} {what}. Give the path of one wav, flac or ogg file.")
    try:
        path.open("rb").close()
    except OSError as error:  # libsndfile says "System error" only
        raise DataError(f"Cannot read audio: {str(path)!r} cannot be opened: {error.strerror}.") from error
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate, frames, channels = int(file.samplerate), int(file.frames), int(file.channels)
            _check_length(path, frames, rate, min_seconds, max_seconds)
            cut_off = _cut_off(file.extra_info)
            data = file.read(dtype="float32", always_2d=True)
    except (RuntimeError, TypeError) as error:  # libsndfile's own errors; TypeError for headerless .raw files
        raise DataError(
            f"Cannot read {str(path)!r} ({path.stat().st_size} bytes) as audio: {error} "
            "Is it really wav, flac or ogg? Convert other formats first, for example with ffmpeg."
        ) from error
    if len(data) < frames:
        cut_off = f"its header promises {frames} samples per channel and {len(data)} were read"
    if cut_off:
        raise DataError(f"{str(path)!r} is cut off: {cut_off}. Copy or export the file again.")
    wave = torch.from_numpy(data)
    bad = int((~torch.isfinite(wave)).sum())
    if bad:
        raise DataError(
            f"{str(path)!r} holds {bad} NaN or infinite samples of {wave.numel()}. A float wav written by a faulty "
            "effect does this; export it again or drop the recording."
        )
    wave = wave.mean(1) if channels > 1 else wave[:, 0].contiguous()
    wave = resample(wave, rate, sample_rate)
    return wave if max_seconds is None else wave[: math.ceil(round(max_seconds * sample_rate, 6))]


def resample(wave: Float[Tensor, "*batch N"], from_rate: int, to_rate: int) -> Float[Tensor, "*batch M"]:
    """Change the sample rate with torchaudio's windowed sinc.

    Args:
        wave: shape (..., N), float32.
        from_rate: samples per second of ``wave``.
        to_rate: samples per second of the result.

    Returns:
        Shape (..., ceil(N · to_rate / from_rate)), float32; ``wave`` itself when the rates are equal.

    Raises:
        ConfigError: a rate is not positive.
        MissingResourceError: torchaudio is missing or cannot be loaded.
    """
    if from_rate <= 0 or to_rate <= 0:
        raise ConfigError(f"Sample rates must be positive; got {from_rate} and {to_rate} samples per second.")
    if from_rate == to_rate:
        return wave
    resampled: Tensor = _torchaudio().functional.resample(wave, from_rate, to_rate)
    return resampled


def check_torchaudio() -> None:
    """Raise a clear error if torchaudio is installed but cannot be loaded beside this torch.

    transformers imports torchaudio wherever it is installed, so a broken pair breaks text models too. A torchaudio
    that is not installed is fine.

    Raises:
        MissingResourceError: torchaudio is installed and its import fails.
    """
    if importlib.util.find_spec("torchaudio") is not None:
        _torchaudio()


def _check_length(path: Path, frames: int, rate: int, low: float, high: float | None) -> None:
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


def _cut_off(log: str) -> str | None:
    """Say what libsndfile's log of an open file tells of a missing end, which it otherwise takes for the file's end.

    Programs that write to a pipe do not know a file's length, and promise 2 GiB or more.
    """
    for promised, there in re.findall(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", log, re.MULTILINE):
        if int(there) < int(promised) < _UNKNOWN_BYTES:
            return f"its header promises {promised} bytes of samples and it holds {there}"
    return "its last page is missing" if "Last page lacks an end-of-stream bit" in log else None


def _soundfile() -> ModuleType:
    try:
        return importlib.import_module("soundfile")
    except ModuleNotFoundError as error:
        raise MissingResourceError(
            f"Reading audio files needs the package soundfile. Install it: {_INSTALL}"
        ) from error
    except OSError as error:  # the package is there, libsndfile is not
        raise MissingResourceError(
            f"soundfile is installed but libsndfile cannot be loaded ({error}). Install it again: {_INSTALL}"
        ) from error


def _torchaudio() -> ModuleType:
    try:
        return importlib.import_module("torchaudio")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] != "torchaudio":
            raise MissingResourceError(
                f"torchaudio cannot be imported: {error}. Install it again: {_INSTALL}"
            ) from error
        raise MissingResourceError(f"Resampling audio needs the package torchaudio. Install it: {_INSTALL}") from error
    except (OSError, ImportError) as error:
        raise MissingResourceError(
            f"torchaudio {_version('torchaudio')} cannot be loaded beside torch {_version('torch')} ({error}). "
            f"The two are built for each other; a pair that works is {_PAIR}. Install it: {_INSTALL}"
        ) from error


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(version unknown)"
