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
    return _hashed(key, (numbers + 1) * _GOLDEN)


def _hashed(key: Int[Tensor, "S B"], entry: Int[Tensor, "n E"]) -> Float[Tensor, "S B E"]:
    """Return the uniforms of the sums of keys and entries, in blocks that stay in a processor's cache."""
    size, count = (*key.shape, entry.shape[-1]), key.numel() * entry.shape[-1]
    if count <= _BLOCK or key.device.type != "cpu":
        return _uniform(key[..., None] + entry, torch.empty(size, dtype=key.dtype, device=key.device))
    found = torch.empty(size, dtype=torch.float32)
    first, second = torch.empty(2, _BLOCK, dtype=key.dtype)
    columns = min(_BLOCK, size[2])
    rows = min(_BLOCK // columns, size[1])
    depth = min(_BLOCK // (columns * rows), size[0])
    for s in range(0, size[0], depth):
        for b in range(0, size[1], rows):
            keys, own = key[s : s + depth, b : b + rows, None], entry if len(entry) == 1 else entry[b : b + rows]
            for e in range(0, size[2], columns):
                block = found[s : s + depth, b : b + rows, e : e + columns]
                value = first[: block.numel()].view(block.shape)
                torch.add(keys, own[:, e : e + columns], out=value)
                block.copy_(_uniform(value, second[: block.numel()].view(block.shape)))
    return found


def _uniform(value: Int[Tensor, "*n"], shifted: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the uniforms of the hashes of ``value``; both arguments are written over, and ``shifted`` is not read.

    The hash's last step changes no bit of the 23 that are taken, and is left out.
    """
    for bits, factor in ((30, _FIRST), (27, _SECOND)):
        torch.bitwise_right_shift(value, bits, out=shifted)
        value.bitwise_xor_(shifted.bitwise_and_((1 << (64 - bits)) - 1)).mul_(factor)
    found = value.bitwise_right_shift_(41).bitwise_and_((1 << 23) - 1).float()
    return found.add_(0.5).mul_(2.0**-23)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)
_BLOCK = 1 << 15
"""Numbers of a block: two of 8 bytes each of them are 512 KiB."""


def _shift(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    value = (value ^ _shift(value, 30)) * _FIRST
    value = (value ^ _shift(value, 27)) * _SECOND
    return value ^ _shift(value, 31)
