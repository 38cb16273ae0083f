"""Which blocks of two encoders of equal or unequal depth belong together."""

from __future__ import annotations

from enum import StrEnum

from bayes_adapters.errors import choice
from bayes_adapters.modalities._block_checks import require_depths, require_multiple, require_same_depth


class DepthMap(StrEnum):
    """Which blocks of two encoders belong together; see :func:`depth_map`."""

    SAME = "same"
    """Block i with block i; equal depths."""
    EVERY_K = "every-k"
    """Every k-th block of the deeper encoder, beginning with the k-th; its depth is k times the other's."""
    SPREAD = "spread"
    """Any depths: the shallower encoder's blocks are spread evenly over the deeper one's."""


def depth_map(n: int, m: int, kind: DepthMap | str = DepthMap.SAME) -> list[tuple[int, int]]:
    """Pair the blocks of an encoder of depth n with those of one of depth m.

    Formula, for D = max(n, m), S = min(n, m) and j = 0 … S−1: block j of the shallower encoder is paired with block
    ``⌊(j + 1) · D / S⌋ − 1`` of the deeper one. So the last blocks meet, each block has at most one partner, equal
    depths give ``same``, and D = k S gives ``every-k``: blocks k−1, 2k−1, … (for k = 2 the odd ones).

    Args:
        n: number of blocks of the first encoder, at least 1.
        m: number of blocks of the second.
        kind: the rule; ``same`` and ``every-k`` are the same formula, but insist on depths that fit.

    Returns:
        Pairs (block of the first, block of the second), counted from 0, in increasing order; min(n, m) of them.

    Raises:
        ConfigError: the depths do not fit ``kind``, or are below 1.

    Source: ``every-k`` with k = 2 is the pairing of CoLA (Suharitdamrong et al. 2026, arXiv 2604.03314).

    >>> depth_map(4, 2, "every-k"), depth_map(6, 4, "spread")
    ([(1, 0), (3, 1)], [(0, 0), (2, 1), (3, 2), (5, 3)])
    """
    kind = choice(DepthMap, "depths", kind)
    require_depths(n, m)
    deep, shallow = max(n, m), min(n, m)
    if kind is DepthMap.SAME:
        require_same_depth(n, m)
    if kind is DepthMap.EVERY_K:
        require_multiple(n, m)
    pairs = [((j + 1) * deep // shallow - 1, j) for j in range(shallow)]
    return pairs if n >= m else [(j, i) for i, j in pairs]
