"""Reading a user's recordings: any common file, any sample rate, mono or stereo, into one float32 waveform.

Needs the package soundfile, of the ``audio`` extra; it is imported on first use, so ``import bayes_adapters`` works
without it.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.backbones.whisper import SAMPLE_RATE as SAMPLE_RATE
from bayes_adapters.speech._audio_checks import FORMATS as FORMATS
from bayes_adapters.speech._audio_checks import (
    opening,
    reading,
    require_file,
    require_finite,
    require_length,
    require_rate,
    require_soundfile,
    require_whole,
)
from bayes_adapters.speech._audio_checks import refuse_silence as refuse_silence
from bayes_adapters.speech.resampling import resample as resample

_UNKNOWN_BYTES = 0x7FFF0000
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

    >>> import soundfile, tempfile
    >>> tone = torch.sin(torch.arange(44_100) / 44_100 * 6.2832 * 440)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     soundfile.write(f"{folder}/a.wav", tone.numpy(), 44_100)
    ...     read_audio(f"{folder}/a.wav").shape  # one second at 16 kHz
    torch.Size([16000])
    """
    require_rate(sample_rate)
    path = Path(path)
    require_file(path)
    soundfile = require_soundfile()
    with opening(path):
        file = soundfile.SoundFile(str(path))
    with file:
        rate, frames, channels = int(file.samplerate), int(file.frames), int(file.channels)
        require_length(path, frames, rate, min_seconds, max_seconds)
        cut_off = _cut_off(file.extra_info)
        with reading(path, frames, channels):
            data = _read_all(file)
    require_whole(path, frames, len(data), cut_off)
    wave = torch.from_numpy(data)
    require_finite(path, wave)
    wave = wave.mean(1) if channels > 1 else wave[:, 0].contiguous()
    wave = resample(wave, rate, sample_rate)
    return wave if max_seconds is None else wave[: math.ceil(round(max_seconds * sample_rate, 6))]


def _read_all(file: Any) -> np.ndarray:
    """Read to the end, shape (frames, channels), float32, in blocks.

    What the header promises is not relied on: it may be wrong, and some encodings (GSM 6.10) cannot be asked for what
    remains.
    """
    blocks = []
    while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
        blocks.append(block)
    return np.concatenate(blocks) if blocks else np.zeros((0, int(file.channels)), np.float32)


def _cut_off(log: str) -> str | None:
    """Say what libsndfile's log of an open file tells of a missing end, which it otherwise takes for the file's end.

    Programs that write to a pipe do not know a file's length, and promise 2 GiB or more.
    """
    for promised, there in re.findall(r"^ ?(?:data|SSND) : (\d+) \(should be (\d+)\)", log, re.MULTILINE):
        if int(there) < int(promised) < _UNKNOWN_BYTES:
            return f"its header promises {promised} bytes of samples and it holds {there}"
    return "its last page is missing" if "Last page lacks an end-of-stream bit" in log else None
