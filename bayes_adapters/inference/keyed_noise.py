"""Uniform noise that is a function of its coordinates, so that a draw repeats in any batch, on any device."""

from __future__ import annotations

import zlib

import torch
from jaxtyping import Float, Int
from torch import Tensor


def keyed_uniform(
    seed: int,
    site: str,
    samples: Int[Tensor, " S"],
    examples: Int[Tensor, " B"],
    entries: int | Int[Tensor, "n E"],
    device: torch.device,
) -> Float[Tensor, "S B E"]:
    """Return uniforms in (0, 1), each a hash of its coordinates: seed, site, sample, example and entry.

    ``entries`` are the numbers of the entries of each example, n being B, or 1 for the same of all; a whole number E
    stands for 0 … E − 1.

    The hash is the finaliser of SplitMix64 (Steele, Lea & Flood 2014, doi 10.1145/2714064.2660195), chained over the
    coordinates; the top 23 bits give odd multiples of 2^-24, which float32 holds exactly: never 0 or 1.
    """
    start = torch.tensor(_signed(seed * 0x9E3779B97F4A7C15 + zlib.crc32(site.encode())), device=device)
    key = _mix(_mix(start) + samples.to(device))
    key = _mix(key[:, None] + _mix(examples.to(device)))
    numbers = torch.arange(entries, device=device) if isinstance(entries, int) else entries
    entry = (numbers + 1) * _signed(0x9E3779B97F4A7C15)
    bits = _shift(_mix(key[..., None] + entry), 41)
    return (bits.float() + 0.5) * 2.0**-23


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift(value, 31)
