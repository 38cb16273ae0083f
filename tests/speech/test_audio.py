"""Reading recordings: what comes out of good files, and what is said about bad ones."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from bayes_adapters.speech.audio import read_audio
from tests.refusals import refuses


def tone(hertz: float, rate: int, seconds: float) -> np.ndarray:
    return 0.5 * np.sin(2 * math.pi * hertz * np.arange(round(rate * seconds)) / rate)


def write(path: Path, data: np.ndarray, rate: int, **options: Any) -> Path:
    soundfile.write(str(path), data, rate, **options)
    return path


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_formats_and_rates(tmp_path: Path, suffix: str, rate: int) -> None:
    wave = read_audio(write(tmp_path / f"tone.{suffix}", tone(440, rate, 0.5), rate))
    assert wave.dtype == torch.float32
    assert wave.shape == (8_000,)
    assert wave[1000:-1000].abs().max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("suffix", "rate", "options"),
    [
        ("opus", 48_000, {"format": "OGG", "subtype": "OPUS"}),
        ("mp3", 16_000, {}),
        ("aiff", 16_000, {}),
        ("wav", 8_000, {"subtype": "ULAW"}),
        ("wav", 8_000, {"subtype": "ALAW"}),
        ("wav", 8_000, {"subtype": "GSM610"}),
    ],
)
def test_every_encoding_that_the_help_names(tmp_path: Path, suffix: str, rate: int, options: dict[str, Any]) -> None:
    """GSM 6.10 cannot be asked how much remains; it adds up to 0.04 s of its own at the end."""
    data = tone(440, rate, 1.0)
    wave = read_audio(write(tmp_path / f"a.{suffix}", data, rate, **options))
    assert 16_000 <= len(wave) <= 16_640
    spectrum = torch.fft.rfft(wave[:16_000] * torch.hann_window(16_000)).abs()
    assert int(spectrum.argmax()) == 440
    assert wave[2_000:14_000].abs().max() == pytest.approx(0.5, abs=0.05)


def test_a_recording_of_several_blocks_is_read_whole(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(0, 0.1, (600_000, 2)).astype(np.float32)
    wave = read_audio(write(tmp_path / "a.wav", data, 16_000, subtype="FLOAT"))
    torch.testing.assert_close(wave, torch.from_numpy(data).mean(1))


@pytest.mark.parametrize("promised", [2**36 - 1, 1_000_000, 0])
def test_a_flac_that_misstates_its_length(tmp_path: Path, promised: int) -> None:
    """The 36 bits of its number of samples begin in the middle of byte 21; 0 says that it is not known."""
    path = write(tmp_path / "a.flac", tone(300, 16_000, 1.0), 16_000)
    data = bytearray(path.read_bytes())
    data[21] = data[21] & 0xF0 | promised >> 32
    data[22:26] = (promised & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(data)
    for longest in (None, 5.0):
        with refuses(DataError, path, *([promised] if promised else [])):
            read_audio(path, max_seconds=longest)


def test_a_coprime_rate_is_read(tmp_path: Path) -> None:
    wave = read_audio(write(tmp_path / "x.wav", tone(440, 44_101, 2.0), 44_101), max_seconds=5.0)
    assert wave.shape == (32_000,)
    assert int(torch.fft.rfft(wave * torch.hann_window(32_000)).abs().argmax()) == 880


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(300, 16_000, 0.3), tone(500, 16_000, 0.3)
    wave = read_audio(write(tmp_path / "two.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT"))
    torch.testing.assert_close(wave, torch.from_numpy((left + right) / 2).float())


def test_same_rate_is_untouched(tmp_path: Path) -> None:
    data = tone(300, 16_000, 0.3).astype(np.float32)
    wave = read_audio(write(tmp_path / "a.wav", data, 16_000, subtype="FLOAT"))
    assert torch.equal(wave, torch.from_numpy(data))


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with refuses(DataError, str(tmp_path / "none.wav"), "wav"):
        read_audio(tmp_path / "none.wav")
    with refuses(DataError, str(tmp_path), "folder"):
        read_audio(tmp_path)


@pytest.mark.parametrize("name", ["text.wav", "text.raw", "text.txt"])
def test_no_audio(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("this is a text")
    with refuses(DataError, str(path), "14 bytes"):
        read_audio(path)


def test_empty_file_and_empty_recording(tmp_path: Path) -> None:
    path = tmp_path / "zero.wav"
    path.touch()
    with refuses(DataError, str(path), "0 bytes"):
        read_audio(path)
    with refuses(DataError, str(tmp_path / "header.wav"), "0 samples"):
        read_audio(write(tmp_path / "header.wav", np.zeros(0), 16_000))


def test_too_short_and_too_long(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(300, 16_000, 0.05), 16_000)
    with refuses(DataError, str(path), "0.050 s", "800 samples", "16000 Hz", "0.1 s"):
        read_audio(path)
    assert len(read_audio(path, min_seconds=0.05)) == 800
    path = write(tmp_path / "b.wav", tone(300, 16_000, 2.0), 16_000)
    with refuses(DataError, str(path), "2.000 s", "1.5 s"):
        read_audio(path, max_seconds=1.5)
    assert len(read_audio(path, max_seconds=2.0)) == 32_000


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite(tmp_path: Path, value: float) -> None:
    data = tone(300, 16_000, 0.3)
    data[[3, 5]] = value
    with refuses(DataError, str(tmp_path / "a.wav"), 2, 4800):
        read_audio(write(tmp_path / "a.wav", data, 16_000, subtype="FLOAT"))


def test_cut_off_flac(tmp_path: Path) -> None:
    path = write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError):
        read_audio(path)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "ogg", "mp3"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_cut_off_file_is_not_taken_for_a_short_one(tmp_path: Path, suffix: str, part: float) -> None:
    """libsndfile reads what is there of a wav, aiff or ogg, and says so in its log only."""
    data = np.random.default_rng(0).normal(0, 0.1, 480_000)
    path = write(tmp_path / f"a.{suffix}", data, 16_000)
    assert len(read_audio(path)) == 480_000
    path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])
    with refuses(DataError, str(path)):
        read_audio(path)


@pytest.mark.parametrize("promised", [0xFFFFFFFF, 0x7FFFF024, 0x7FFFFFFF])
def test_a_wav_from_a_pipe_is_not_cut_off(tmp_path: Path, promised: int) -> None:
    path = write(tmp_path / "a.wav", tone(300, 16_000, 0.3), 16_000)
    data, size = path.read_bytes(), promised.to_bytes(4, "little")
    place = data.index(b"data") + 4
    path.write_bytes(data[:4] + size + data[8:place] + size + data[place + 4 :])
    assert len(read_audio(path)) == 4_800


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 44_100])
def test_a_sample_more_than_the_longest_is_left_out(tmp_path: Path, rate: int) -> None:
    """It became up to two samples more than the encoder takes, which refused them as its own affair."""
    data = tone(300, rate, 2.2)
    whole = read_audio(write(tmp_path / "a.wav", data[: 2 * rate], rate), max_seconds=2.0)
    more = read_audio(write(tmp_path / "b.wav", data[: 2 * rate + 1], rate), max_seconds=2.0)
    assert len(whole) == len(more) == 32_000
    with refuses(DataError, str(tmp_path / "c.wav"), "2 s"):
        read_audio(write(tmp_path / "c.wav", data[: 2 * rate + 2], rate), max_seconds=2.0)


def test_what_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refuses(DataError, "'/dev/null'"):
        read_audio("/dev/null")
    path = write(tmp_path / "a.wav", tone(300, 16_000, 0.3), 16_000)

    def refuse(*_args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with refuses(DataError, str(path), "Permission denied"):
        read_audio(path)


def test_rates_must_be_positive(tmp_path: Path) -> None:
    with refuses(ConfigError, "sample_rate", 0):
        read_audio(tmp_path / "a.wav", sample_rate=0)


@pytest.mark.parametrize(
    ("error", "facts"),
    [(ModuleNotFoundError("soundfile"), ("soundfile",)), (OSError("no such file"), ("libsndfile", "no such file"))],
)
def test_soundfile_missing_or_broken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, facts: tuple[object, ...]
) -> None:
    path = write(tmp_path / "a.wav", tone(300, 16_000, 0.3), 16_000)

    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    with refuses(MissingResourceError, *facts, "'.[audio]'"):
        read_audio(path)
