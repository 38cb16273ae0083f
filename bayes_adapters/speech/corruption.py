"""Corruptions of a waveform: noise at a given signal-to-noise ratio, babble, reverberation, clipping.

Every function leaves its input untouched, keeps its length, and is a deterministic function of its arguments and the
``torch.Generator`` it is given. Powers are means over the whole recording, pauses included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data._transform_checks import check_interval
from bayes_adapters.speech._checks import (
    require_babble_power,
    require_condition,
    require_finite_snr,
    require_gain,
    require_kinds,
    require_no_strength,
    require_powers,
    require_recordings,
    require_rt60,
    require_same_length,
    required_snr,
)

_NOISY = ("white", "babble")
_PLAIN = ("clean", "reverb", "clip")


@dataclass(frozen=True)
class Condition:
    """A corruption and its strength, written ``clean``, ``white@10``, ``babble@-5``, ``reverb`` or ``clip``.

    Args:
        kind: ``clean``, ``white``, ``babble``, ``reverb`` or ``clip``.
        snr_db: signal-to-noise ratio in dB, for ``white`` and ``babble``; ``None`` otherwise.
    """

    kind: str
    snr_db: float | None = None

    @classmethod
    def parse(cls, name: str) -> Condition:
        """Read a condition from its name.

        Raises:
            ConfigError: the name is unknown, or a noise has no finite strength, or another condition has one.

        >>> Condition.parse("white@-5")
        Condition(kind='white', snr_db=-5.0)
        """
        kind, at, level = name.partition("@")
        require_condition(name, kind, _NOISY, _PLAIN)
        if kind in _PLAIN:
            require_no_strength(name, kind, at)
            return cls(kind)
        try:
            snr_db = float(level)
        except ValueError:
            snr_db = math.nan
        require_finite_snr(name, kind, snr_db)
        return cls(kind, snr_db)

    def __str__(self) -> str:
        return self.kind if self.snr_db is None else f"{self.kind}@{self.snr_db:g}"


def corrupt(
    wave: Float[Tensor, " N"],
    condition: Condition | str,
    generator: torch.Generator,
    *,
    others: Sequence[Float[Tensor, " _"]] = (),
    sample_rate: int = 16_000,
) -> Float[Tensor, " N"]:
    """Apply a condition to one recording.

    Args:
        wave: shape (N,), floating point.
        condition: what to do; a string is read by :meth:`Condition.parse`.
        generator: source of the noise.
        others: recordings that babble is made of, each of shape (M,); needed for ``babble`` only.
        sample_rate: samples per second.

    Returns:
        Shape (N,), the same dtype.

    Raises:
        ConfigError: the condition is unknown.
        DataError: babble without ``others``; noise on a silent or empty recording.

    >>> tone = torch.sin(torch.arange(16_000) / 16_000 * 6.2832 * 440)
    >>> noisy = corrupt(tone, "white@10", torch.Generator().manual_seed(0))
    >>> round(float(10 * torch.log10(tone.square().mean() / (noisy - tone).square().mean())), 3)  # dB
    10.0
    """
    condition = Condition.parse(condition) if isinstance(condition, str) else condition
    if condition.kind == "clean":
        return wave
    if condition.kind == "reverb":
        return reverb(wave, generator, sample_rate=sample_rate)
    if condition.kind == "clip":
        return clip(wave)
    snr_db = required_snr(condition.kind, condition.snr_db)
    n = wave.numel()
    noise = white_noise(n, generator) if condition.kind == "white" else babble(others, n, generator)
    return add_noise(wave, noise, snr_db)


def corrupt_at_random(
    wave: Float[Tensor, " N"],
    generator: torch.Generator,
    *,
    kinds: Sequence[str] = ("clean", "white"),
    snr_db: tuple[float, float] = (-5.0, 20.0),
    others: Sequence[Float[Tensor, " _"]] = (),
    sample_rate: int = 16_000,
) -> Float[Tensor, " N"]:
    """Apply a condition that is drawn: its kind from ``kinds``, each as likely, its strength uniform in ``snr_db``.

    For training before the encoder, where recordings are encoded anew each epoch; frames that are there already take
    :class:`bayes_adapters.data.transforms.FrameNoise`. A recording without any power stays as it is.

    Args:
        wave: shape (N,), floating point.
        generator: source of everything random.
        kinds: kinds of :class:`Condition`; one given twice is twice as likely.
        snr_db: (low, high), dB, for ``white`` and ``babble``.
        others: recordings that babble is made of, see :func:`corrupt`.
        sample_rate: samples per second.

    Returns:
        Shape (N,), the same dtype.

    Raises:
        ConfigError: a kind is unknown or there is none, or the interval is not finite and in order.
        DataError: babble without ``others``.

    >>> tone = torch.sin(torch.arange(16_000) / 16_000 * 6.2832 * 440)
    >>> noisy = corrupt_at_random(tone, torch.Generator().manual_seed(0), kinds=["white"], snr_db=(5.0, 15.0))
    >>> 5.0 < float(10 * torch.log10(tone.square().mean() / (noisy - tone).square().mean())) < 15.0
    True
    """
    require_kinds(kinds, _NOISY, _PLAIN)
    check_interval("snr_db", snr_db)
    kind = kinds[int(torch.randint(len(kinds), (), generator=generator))]
    level = snr_db[0] + (snr_db[1] - snr_db[0]) * float(torch.rand((), generator=generator))
    condition = Condition(kind, level if kind in _NOISY else None)
    if _power(wave) == 0.0:
        return wave
    return corrupt(wave, condition, generator, others=others, sample_rate=sample_rate)


def add_noise(wave: Float[Tensor, " N"], noise: Float[Tensor, " _"], snr_db: float) -> Float[Tensor, " N"]:
    """Add noise, scaled so that 10 · log10(power of wave / power of added noise) = ``snr_db``.

    Args:
        wave: shape (N,), floating point.
        noise: shape (N,), any power but zero.
        snr_db: signal-to-noise ratio in dB.

    Returns:
        Shape (N,), the dtype of ``wave``; it may exceed full scale, nothing is clamped.

    Raises:
        DataError: the lengths differ, or one of the two has zero or non-finite power.

    >>> noisy = add_noise(torch.ones(100), torch.tensor([3.0, -3.0] * 50), snr_db=20.0)
    >>> noisy[:2]
    tensor([1.1000, 0.9000])
    """
    require_same_length(wave, noise)
    powers = {"recording": _power(wave), "noise": _power(noise)}
    require_powers(powers, snr_db)
    gain = math.sqrt(powers["recording"] / (powers["noise"] * 10 ** (snr_db / 10)))
    return (wave.double() + gain * noise.double()).to(wave.dtype)


def white_noise(samples: int, generator: torch.Generator) -> Float[Tensor, " N"]:
    """Draw Gaussian noise of unit power.

    Args:
        samples: how many, N.
        generator: source of the noise.

    Returns:
        Shape (N,), float32.
    """
    return torch.randn(samples, generator=generator)


def babble(waves: Sequence[Float[Tensor, " _"]], samples: int, generator: torch.Generator) -> Float[Tensor, " N"]:
    """Sum recordings of equal power, each looped from a random start and cropped: several people talking at once.

    Args:
        waves: one or more recordings, each of shape (M,), floating point, not silent.
        samples: length of the result, N.
        generator: source of the starts.

    Returns:
        Shape (N,), float32.

    Raises:
        DataError: no recording, or a silent, empty or non-finite one.

    >>> tone = torch.sin(torch.arange(16_000) / 16_000 * 6.2832 * 440)
    >>> babble([tone, 3 * tone.flip(0)], 8_000, torch.Generator().manual_seed(0)).shape
    torch.Size([8000])
    """
    require_recordings(waves)
    total = torch.zeros(samples, dtype=torch.float64)
    for number, wave in enumerate(waves):
        power = _power(wave)
        require_babble_power(number, power)
        start = int(torch.randint(wave.numel(), (), generator=generator))
        total += wave.double()[(start + torch.arange(samples)) % wave.numel()] / math.sqrt(power)
    return total.float()


def reverb(
    wave: Float[Tensor, " N"],
    generator: torch.Generator,
    *,
    rt60: float = 0.8,
    direct_to_reverb_db: float = 0.0,
    sample_rate: int = 16_000,
) -> Float[Tensor, " N"]:
    """Convolve with a synthetic room: a direct path, then Gaussian noise that decays by 60 dB in ``rt60`` seconds.

    Args:
        wave: shape (N,), floating point.
        generator: source of the impulse response.
        rt60: reverberation time in seconds.
        direct_to_reverb_db: energy of the direct path over that of the tail, in dB.
        sample_rate: samples per second.

    Returns:
        Shape (N,), the same dtype and power; what rings on after the end is cut.

    Raises:
        ConfigError: ``rt60`` is not positive.

    >>> tone = torch.sin(torch.arange(16_000) / 16_000 * 6.2832 * 440)
    >>> wet = reverb(tone, torch.Generator().manual_seed(0), rt60=0.3)
    >>> round(float(wet.square().mean() / tone.square().mean()), 3)
    1.0
    """
    require_rt60(rt60)
    length = max(int(rt60 * sample_rate), 1)
    time = torch.arange(1, length + 1, dtype=torch.float64) / sample_rate
    tail = torch.randn(length, generator=generator, dtype=torch.float64) * torch.exp(-math.log(1000) * time / rt60)
    tail = tail / tail.norm() * 10 ** (-direct_to_reverb_db / 20)
    response = torch.cat([torch.ones(1, dtype=torch.float64), tail])
    size = wave.numel() + response.numel() - 1
    wet = torch.fft.irfft(torch.fft.rfft(wave.double(), size) * torch.fft.rfft(response, size), size)[: wave.numel()]
    power = _power(wet)
    gain = math.sqrt(_power(wave) / power) if power > 0 else 0.0
    return (gain * wet).to(wave.dtype)


def clip(wave: Float[Tensor, " N"], *, gain_db: float = 30.0) -> Float[Tensor, " N"]:
    """Overdrive: amplify by ``gain_db`` and cut at the recording's own peak.

    Args:
        wave: shape (N,), floating point.
        gain_db: amplification in dB, at least 0; 0 changes nothing.

    Returns:
        Shape (N,), the same dtype and peak.

    Raises:
        ConfigError: ``gain_db`` is negative.

    >>> clip(torch.tensor([0.0, 0.1, 1.0]), gain_db=6.0206)
    tensor([0.0000, 0.2000, 1.0000])
    """
    require_gain(gain_db)
    if wave.numel() == 0:
        return wave
    peak = wave.abs().max()
    return (wave * 10 ** (gain_db / 20)).clamp(-peak, peak)


def _power(wave: Tensor) -> float:
    return float(wave.double().square().mean()) if wave.numel() else 0.0
