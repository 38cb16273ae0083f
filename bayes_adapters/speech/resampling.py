"""Changing the sample rate of a waveform, between any two whole rates, in bounded memory."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, integer

_ZEROS = 6  # zero crossings of the sinc on each side of its peak
_ROLLOFF = 0.99  # cut-off over half the lower of the two rates
_CHUNK = 2**20  # products held at once


def resample(wave: Float[Tensor, "*batch N"], from_rate: int, to_rate: int) -> Float[Tensor, "*batch M"]:
    """Change the sample rate by interpolation with a windowed sinc.

    Output m lies at ``p = m · from_rate / to_rate``, counted in input samples, and is

        ``y[m] = Σ_i x[i] h(i − p)``,  ``h(u) = c · sinc(c u) · cos²(π c u / 12)`` for ``|c u| < 6``, else 0,

    with ``sinc(v) = sin(πv) / (πv)`` and ``c = 0.99 · min(1, to_rate / from_rate)``: a low-pass filter at 99 % of half
    the lower rate, cut off by a Hann window after six zero crossings on each side. Samples outside of the recording are
    0. This is ``torchaudio.functional.resample`` with its default options.

    With ``from_rate / to_rate = a / b`` in lowest terms, the outputs m, m + b, m + 2b, … share their weights, which are
    computed once. Products are summed in chunks: the memory is that of the input, the output and a few MB, whatever a
    and b.

    Args:
        wave: shape (..., N), floating point, any device.
        from_rate: samples per second of ``wave``.
        to_rate: samples per second of the result.

    Returns:
        Shape (..., ceil(N · to_rate / from_rate)), the dtype and device of ``wave``; ``wave`` itself when the rates are
        equal. Differentiable.

    Raises:
        ConfigError: a rate is no positive integer.
        DataError: ``wave`` has no dimension, or is not floating point.

    Source: J. O. Smith, "Digital audio resampling", https://ccrma.stanford.edu/~jos/resample/

    >>> import torch
    >>> resample(torch.ones(2, 441), 44_100, 16_000).shape
    torch.Size([2, 160])
    """
    from_rate, to_rate = integer("from_rate", from_rate), integer("to_rate", to_rate)
    if from_rate <= 0 or to_rate <= 0:
        raise ConfigError(f"Sample rates must be positive; got {from_rate} and {to_rate} samples per second.")
    if wave.dim() == 0 or not wave.is_floating_point():
        raise DataError(
            f"A waveform of shape (..., N), floating point, is needed; got shape {tuple(wave.shape)}, {wave.dtype}. "
            "Divide whole-numbered samples by their full scale, for example wave / 32768 for 16 bits."
        )
    if from_rate == to_rate:
        return wave
    divisor = math.gcd(from_rate, to_rate)
    a, b = from_rate // divisor, to_rate // divisor
    outputs = -(-wave.shape[-1] * b // a)
    if wave.numel() == 0:
        return wave.new_zeros(*wave.shape[:-1], outputs)
    flat = wave.reshape(-1, wave.shape[-1]).to(torch.promote_types(wave.dtype, torch.float32))
    return _interpolate(flat, a, b, outputs).to(wave.dtype).reshape(*wave.shape[:-1], outputs)


def _interpolate(wave: Float[Tensor, "R N"], a: int, b: int, outputs: int) -> Float[Tensor, "R M"]:
    """Return outputs 0 … M − 1 at the positions ``m · a / b``: M = ``outputs`` = ceil(N b / a)."""
    cutoff = _ROLLOFF * min(1.0, b / a)
    half = math.ceil(_ZEROS / cutoff)
    taps = torch.arange(1 - half, half + 1, device=wave.device)  # those that h(tap − fraction) can reach
    phases, periods = min(b, outputs), -(-outputs // b)
    behind = (periods - 1) * a + (phases - 1) * a // b + half - (wave.shape[1] - 1)
    windows = torch.nn.functional.pad(wave, (half - 1, max(behind, 0))).unfold(1, 2 * half, 1)  # a view
    width = max(1, min(phases, _CHUNK // (2 * half)))
    height = max(1, _CHUNK // (2 * half * width * len(wave)))
    columns = []
    for first in range(0, phases, width):
        steps = torch.arange(first, min(first + width, phases), device=wave.device) * a
        whole, fraction = steps // b, (steps % b).double() / b
        weights = _filter(taps - fraction[:, None], cutoff).to(wave.dtype)
        rows = []
        for top in range(0, periods, height):
            start = torch.arange(top, min(top + height, periods), device=wave.device) * a
            rows.append(torch.einsum("rpjk,jk->rpj", windows[:, start[:, None] + whole], weights))
        columns.append(torch.cat(rows, 1))
    return torch.cat(columns, 2).flatten(1)[:, :outputs]


def _filter(offset: Float[Tensor, "*shape"], cutoff: float) -> Float[Tensor, "*shape"]:
    """Return ``h`` of :func:`resample` at these distances, in input samples."""
    scaled = (cutoff * offset).clamp(-_ZEROS, _ZEROS)
    return cutoff * torch.sinc(scaled) * torch.cos(scaled * (math.pi / (2 * _ZEROS))).square()
