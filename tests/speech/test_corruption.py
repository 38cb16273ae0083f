"""Corruptions: the strength asked for, the same length, and nothing random but the generator."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.speech.corruption import (
    Condition,
    add_noise,
    babble,
    clip,
    corrupt,
    corrupt_at_random,
    reverb,
    white_noise,
)
from tests.refusals import refuses


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def speech(samples: int = 8_000, seed: int = 1) -> Tensor:
    time = torch.arange(samples) / 16_000
    return 0.3 * torch.sin(2 * math.pi * 200 * time) * torch.rand(samples, generator=seeded(seed))


def power(wave: Tensor) -> float:
    return float(wave.double().square().mean())


def decibels(wave: Tensor, noise: Tensor) -> float:
    return 10 * math.log10(power(wave) / power(noise))


@settings(max_examples=50, deadline=None)
@given(
    snr_db=st.floats(-20, 40),
    loud=st.floats(1e-3, 10),
    samples=st.integers(1_600, 20_000),
    seed=st.integers(0, 1_000),
)
def test_noise_has_the_strength_asked_for(snr_db: float, loud: float, samples: int, seed: int) -> None:
    wave = speech(samples, seed)
    noisy = add_noise(wave, loud * white_noise(samples, seeded(seed)), snr_db)
    assert noisy.dtype == torch.float32
    assert decibels(wave, noisy.double() - wave.double()) == pytest.approx(snr_db, abs=1e-4)


@pytest.mark.parametrize("name", ["clean", "white@10", "white@-5", "babble@0", "reverb", "clip"])
def test_conditions_keep_length_and_depend_on_the_generator_only(name: str) -> None:
    wave, others = speech(), [speech(3_000, 2), speech(9_000, 3)]
    before = wave.clone()
    first, again, other = (corrupt(wave, name, seeded(seed), others=others) for seed in (5, 5, 6))
    assert torch.equal(wave, before)
    assert first.shape == wave.shape
    assert torch.isfinite(first).all()
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name in {"clean", "clip"})
    assert torch.equal(first, wave) == (name == "clean")
    assert str(Condition.parse(name)) == name


def test_babble_gives_each_talker_the_same_power() -> None:
    quiet, loud = 0.01 * torch.randn(4_000, generator=seeded(1)), torch.randn(500, generator=seeded(2))
    both = babble([quiet, loud], 8_000, seeded())
    alone = babble([quiet], 8_000, seeded())
    assert power(alone) == pytest.approx(1, rel=1e-5)
    assert power(both) == pytest.approx(2, rel=0.1)


def test_reverb_keeps_power_and_smears() -> None:
    wave = torch.zeros(8_000)
    wave[1_000] = 1.0
    wet = reverb(wave, seeded(), rt60=0.2)
    assert power(wet) == pytest.approx(power(wave), rel=1e-5)
    assert not wet[:1_000].abs().gt(1e-6).any()
    early, late = wet[1_001:1_801].norm(), wet[3_401:4_201].norm()
    assert 20 * math.log10(early / late) == pytest.approx(60 * 2_400 / 3_200, abs=2.0)
    assert power(reverb(torch.zeros(100), seeded())) == 0


def test_clip_keeps_the_peak_and_flattens() -> None:
    wave = speech()
    hard = clip(wave)
    assert float(hard.abs().max()) == pytest.approx(float(wave.abs().max()))
    assert power(hard) > 2 * power(wave)
    assert torch.equal(clip(wave, gain_db=0.0), wave)
    assert clip(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("name", ["withe@5", "white", "white@loud", "white@nan", "clean@3", ""])
def test_unknown_conditions(name: str) -> None:
    with pytest.raises(ConfigError):
        Condition.parse(name)


def test_near_matches_are_named() -> None:
    with refuses(ConfigError, "'withe@5'", "'white'"):
        Condition.parse("withe@5")


def test_unusable_recordings() -> None:
    with refuses(DataError, "recording", "power 0", "5 dB"):
        corrupt(torch.zeros(100), "white@5", seeded())
    with refuses(DataError, "noise", "power 0", "5 dB"):
        add_noise(speech(100), torch.zeros(100), 5.0)
    with refuses(DataError, (100,), (99,)):
        add_noise(speech(100), torch.ones(99), 5.0)
    with refuses(DataError, "others=[...]", "none"):
        corrupt(speech(), "babble@5", seeded())
    with refuses(DataError, "Recording 1", "power 0"):
        babble([speech(), torch.zeros(5)], 10, seeded())
    with refuses(ConfigError, "rt60", 0.0):
        reverb(speech(), seeded(), rt60=0.0)
    with refuses(ConfigError, "gain_db", 0, -1.0):
        clip(speech(), gain_db=-1.0)
    with refuses(ConfigError, "'white'", "snr_db"):
        corrupt(speech(), Condition("white"), seeded())


def test_a_drawn_condition_has_a_strength_within_the_ends_and_kinds_as_often_as_named() -> None:
    wave, source = speech(), seeded(3)
    clean, levels = 0, []
    for _ in range(300):
        added = corrupt_at_random(wave, source, kinds=["clean", "clean", "white"], snr_db=(-5.0, 15.0)) - wave
        if power(added) == 0.0:
            clean += 1
        else:
            levels.append(decibels(wave, added))
    assert clean == pytest.approx(200, abs=4 * math.sqrt(300 * 2 / 9))
    assert -5.01 < min(levels) < -2.0
    assert 12.0 < max(levels) < 15.01
    first, again = (corrupt_at_random(wave, seeded(5), kinds=["babble"], others=[speech(seed=9)]) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(corrupt_at_random(torch.zeros(80), seeded(), kinds=["white"]), torch.zeros(80))
    for kinds, fact in (([], "kinds"), (["wite"], "'white'"), (["white@10"], "snr_db")):
        with refuses(ConfigError, fact):
            corrupt_at_random(wave, seeded(), kinds=kinds)
    with refuses(ConfigError, "snr_db", (10.0, 0.0)):
        corrupt_at_random(wave, seeded(), snr_db=(10.0, 0.0))
