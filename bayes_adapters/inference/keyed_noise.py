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
    numbers = torch.arange(entries, device=device)[None] if isinstance(entries, int) else entries
    entry = (numbers + 1) * _signed(0x9E3779B97F4A7C15)
    count = key.numel() * entry.shape[-1]
    if key.device.type != "cpu" or count <= _BLOCK:
        return _uniform(key[..., None] + entry)
    return _in_blocks(key, entry)


def _in_blocks(key: Int[Tensor, "S B"], entry: Int[Tensor, "n E"]) -> Float[Tensor, "S B E"]:
    """Return the uniforms of the sums of keys and entries; every step of the hash stays in a processor's cache."""
    samples, examples, entries = *key.shape, entry.shape[-1]
    found = torch.empty(samples, examples, entries)
    columns = min(_BLOCK, entries)
    rows = min(_BLOCK // columns, examples)
    depth = min(_BLOCK // (columns * rows), samples)
    for s in range(0, samples, depth):
        for b in range(0, examples, rows):
            keys, own = key[s : s + depth, b : b + rows, None], entry if len(entry) == 1 else entry[b : b + rows]
            for e in range(0, entries, columns):
                found[s : s + depth, b : b + rows, e : e + columns] = _uniform(keys + own[:, e : e + columns])
    return found


def _uniform(value: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    # The last step of the hash would change no bit of the 23 that are taken.
    return _shift(_stirred(value), 41).float().add_(0.5).mul_(2.0**-23)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


_BLOCK = 1 << 15
"""Numbers of a block, of 8 bytes each: 256 KiB."""
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = _stirred(value)
    return value.bitwise_xor_(_shift(value, 31))


def _stirred(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)).mul_(_FIRST)
    return value.bitwise_xor_(_shift(value, 27)).mul_(_SECOND)
