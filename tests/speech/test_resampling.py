"""Resampling: its formula, torchaudio's numbers, and what it costs."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayes_adapters.errors import ConfigError
from bayes_adapters.speech import resampling
from bayes_adapters.speech.resampling import resample
from tests.refusals import refuses

RATES = [(8_000, 16_000), (44_100, 16_000), (48_000, 16_000), (22_050, 16_000), (16_000, 8_000), (11_025, 16_000)]


def by_hand(wave: Tensor, from_rate: int, to_rate: int, outputs: list[int]) -> Tensor:
    """The sum of the docstring over all samples, in double precision."""
    i = np.arange(len(wave))
    values = []
    for m in outputs:
        v = 0.99 * min(1.0, to_rate / from_rate) * (i - m * from_rate / to_rate)
        h = np.where(np.abs(v) < 6, np.sinc(v) * np.cos(np.pi * v / 12) ** 2, 0.0)
        values.append(0.99 * min(1.0, to_rate / from_rate) * float((wave.numpy() * h).sum()))
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("rates", RATES)
@pytest.mark.parametrize("samples", [1, 2, 441, 20_001])
def test_torchaudios_numbers(rates: tuple[int, int], samples: int) -> None:
    """Equal in double precision; in single precision torchaudio's own weights are off by up to 1e-4."""
    torchaudio = pytest.importorskip("torchaudio", exc_type=ModuleNotFoundError)
    wave = torch.randn(2, 3, samples, dtype=torch.float64)
    expected = torchaudio.functional.resample(wave, *rates)
    torch.testing.assert_close(resample(wave, *rates), expected, atol=1e-11, rtol=0)
    single = resample(wave.float(), *rates)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("rates", [*RATES, (12_007, 16_000), (44_101, 16_000), (16_000, 44_101), (7, 3), (16_000, 1)])
def test_the_formula(rates: tuple[int, int]) -> None:
    wave = torch.randn(5 * max(rates[0], 700), dtype=torch.float64)
    made = resample(wave, *rates)
    assert len(made) == math.ceil(len(wave) * rates[1] / rates[0])
    chosen = sorted({0, 1, len(made) // 3, len(made) // 2, len(made) - 2, len(made) - 1} & {*range(len(made))})
    torch.testing.assert_close(made[chosen], by_hand(wave, *rates, chosen), atol=1e-9, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    samples=st.integers(0, 300),
    from_rate=st.integers(1, 50),
    to_rate=st.integers(1, 50),
    chunk=st.sampled_from([1, 97, 1_000]),
)
def test_any_rates_any_length_any_chunk(samples: int, from_rate: int, to_rate: int, chunk: int) -> None:
    wave = torch.randn(samples, dtype=torch.float64, generator=torch.Generator().manual_seed(samples))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resampling, "_CHUNK", chunk)
        made = resample(wave, from_rate, to_rate)
    count = -(-samples * to_rate // from_rate)
    assert made.shape == (count,)
    if from_rate != to_rate:
        expected = by_hand(wave, from_rate, to_rate, list(range(count)))
        torch.testing.assert_close(made, expected, atol=1e-11, rtol=0)


@settings(max_examples=20, deadline=None)
@given(hertz=st.floats(100, 2_500), rate=st.sampled_from([8_000, 11_025, 12_007, 22_050, 44_100, 44_101, 48_000]))
def test_a_tone_keeps_frequency_and_level(hertz: float, rate: int) -> None:
    tone = 0.5 * torch.sin(2 * math.pi * hertz * torch.arange(rate) / rate)
    wave = resample(tone, rate, 16_000)
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    assert float(spectrum.argmax()) * 16_000 / len(wave) == pytest.approx(hertz, abs=1.0)
    assert wave[1_000:-1_000].abs().max() == pytest.approx(0.5, abs=0.01)


def test_what_the_lower_rate_cannot_hold_is_removed() -> None:
    tone = torch.sin(2 * math.pi * 7_000 * torch.arange(16_000) / 16_000)
    assert resample(tone, 16_000, 8_000)[100:-100].abs().max() < 0.01


def test_the_gradient_is_the_transpose() -> None:
    wave = torch.randn(2, 40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: resample(x, 7, 5), wave)


def test_the_dtype_and_an_equal_rate() -> None:
    wave = torch.randn(100)
    assert resample(wave, 5, 5) is wave
    assert resample(wave.bfloat16(), 3, 2).dtype == torch.bfloat16
    assert resample(torch.zeros(0, 9), 3, 2).shape == (0, 6)


@pytest.mark.parametrize(("rates", "value"), [((-1, 5), "-1"), ((5, 0), "0")])
def test_rates_that_cannot_be(rates: tuple[int, int], value: str) -> None:
    with refuses(ConfigError, value):
        resample(torch.zeros(5), *rates)


def in_its_own_process(program: str) -> str:
    """What a program prints that runs as a user's does, without the tests' type checker."""
    root, clean = Path(__file__).resolve().parents[2], os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=clean, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_arguments_of_another_type() -> None:
    said = in_its_own_process("""
import torch
from bayes_adapters.speech.resampling import resample
for wave, rate in ((torch.zeros(5, dtype=torch.int16), 6), (torch.tensor(1.0), 6), (torch.zeros(5), 22050.5)):
    try:
        resample(wave, rate, 5)
    except ValueError as error:
        print(type(error).__name__, error)
""").splitlines()
    assert [line.split()[0] for line in said] == ["DataError", "DataError", "ConfigError"]
    assert all(value in line for value, line in zip(("torch.int16", "()", "22050.5"), said, strict=True))


def test_coprime_rates_take_a_bounded_memory() -> None:
    """30 s at 44,101 Hz; a table of all weights would have 16,000 × 44,135 entries, 2.8 GB."""
    said = in_its_own_process("""
import resource, sys
import torch
from bayes_adapters.speech.resampling import resample
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert resample(torch.ones(30 * 44_101), 44_101, 16_000).shape == (480_000,)
assert "torchaudio" not in sys.modules
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
""")
    assert int(said) < 200_000  # kB
