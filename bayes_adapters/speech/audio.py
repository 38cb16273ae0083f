"""Reading a user's recordings: any common file, any sample rate, mono or stereo, into one float32 waveform.

Needs the package soundfile, of the ``audio`` extra; it is imported on first use, so ``import bayes_adapters`` works
without it.
"""

from __future__ import annotations

import importlib
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.backbones.whisper import SAMPLE_RATE as SAMPLE_RATE
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from bayes_adapters.speech.resampling import resample as resample

FORMATS = "wav, aiff, flac, ogg, opus or mp3"
"""What recordings may be, in words."""
_INSTALL = "Install it from a checkout of bayes-adapters: pip install '.[audio]'"
_UNKNOWN_BYTES = 0x7FFF0000
_UNKNOWN_FRAMES = 2**63 - 1  # what libsndfile says of a flac or ogg that does not give its length
_SILENT = 1e-4
_BLOCK = 2**18  # samples per channel read at once


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
        path: a file that libsndfile reads: wav (PCM, float, A-law, µ-law, GSM 6.10, …), aiff, flac, ogg, opus, mp3.
        sample_rate: samples per second of the result.
        min_seconds: shortest recording accepted, in seconds.
        max_seconds: longest recording accepted, in seconds; ``None`` accepts any length. A sample more, as rounding
            makes it, is left out.

    Returns:
        Shape (N,), float32, full scale is -1 … 1, ``N`` = seconds × ``sample_rate`` rounded up.

    Raises:
        ConfigError: ``sample_rate`` is not positive.
        DataError: the file is absent, not readable, no audio, empty, cut off, too short, too long, too long for the
            memory, or holds NaN or infinity.
        MissingResourceError: soundfile is missing or cannot be loaded.
    """
    if sample_rate <= 0:
        raise ConfigError(f"sample_rate must be a positive number of samples per second; got {sample_rate}.")
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "is no regular file" if path.exists() else "does not exist"
        raise DataError(f"Cannot read audio: {str(path)!r} {what}. Give the path of one {FORMATS} file.")
    try:
        path.open("rb").close()
    except OSError as error:  # libsndfile says "System error" only
        raise DataError(f"Cannot read audio: {str(path)!r} cannot be opened: {error.strerror}.") from error
    soundfile = _soundfile()
    try:
        file = soundfile.SoundFile(str(path))
    except (RuntimeError, TypeError) as error:  # libsndfile's own errors; TypeError for headerless .raw files
        raise DataError(
            f"Cannot read {str(path)!r} ({path.stat().st_size} bytes) as audio: {error} "
            f"Is it really {FORMATS}? Convert other formats first, for example with ffmpeg."
        ) from error
    with file:
        rate, frames, channels = int(file.samplerate), int(file.frames), int(file.channels)
        if frames == _UNKNOWN_FRAMES:
            raise DataError(
                f"{str(path)!r} does not say how long it is, as programs that write to a pipe leave it. Give it a "
                "length first, for example: ffmpeg -i in.flac out.wav"
            )
        _check_length(path, frames, rate, min_seconds, max_seconds)
        cut_off = _cut_off(file.extra_info)
        try:
            data = _read_all(file)
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


def refuse_silence(path: str | Path, wave: Float[Tensor, " N"]) -> None:
    """Raise if a recording is silent: its standard deviation is below 1e-4, −80 dB of full scale.

    The dither of a silent 16-bit file is below that. 10 ms at each end do not count, nor does what resampling makes of
    a constant offset.

    Args:
        path: of the recording, for the error.
        wave: shape (N,), from :func:`read_audio`.

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


def _read_all(file: Any) -> np.ndarray:
    """Read to the end, shape (frames, channels), float32, in blocks.

    What the header promises is not relied on: it may be wrong, and some encodings (GSM 6.10) cannot be asked for what
    remains.
    """
    blocks = []
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    return np.concatenate(blocks) if blocks else np.zeros((0, int(file.channels)), np.float32)


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
        raise MissingResourceError(f"Reading audio files needs the package soundfile. {_INSTALL}") from error
    except OSError as error:  # the package is there, libsndfile is not
        raise MissingResourceError(
            f"soundfile is installed but libsndfile cannot be loaded ({error}). {_INSTALL}"
        ) from error
