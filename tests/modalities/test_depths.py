"""Depths are paired as documented."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.depths import DepthMap, depth_map
from tests.refusals import refuses


def test_depth_maps_by_hand() -> None:
    assert depth_map(3, 3) == [(0, 0), (1, 1), (2, 2)]
    assert depth_map(24, 12, "every-k") == [(2 * j + 1, j) for j in range(12)]
    assert depth_map(2, 6, "every-k") == [(0, 2), (1, 5)]
    assert depth_map(6, 4, "spread") == [(0, 0), (2, 1), (3, 2), (5, 3)]
    assert depth_map(4, 6, "spread") == [(0, 0), (1, 2), (2, 3), (3, 5)]
    assert depth_map(12, 5, "spread") == [(1, 0), (3, 1), (6, 2), (8, 3), (11, 4)]


@given(st.integers(1, 60), st.integers(1, 60))
def test_spread_is_even_and_agrees_with_the_other_kinds(n: int, m: int) -> None:
    pairs = depth_map(n, m, DepthMap.SPREAD)
    deep, shallow = max(n, m), min(n, m)
    assert len(pairs) == shallow
    assert pairs[-1] == (n - 1, m - 1)
    ours = [max(pair) if n != m else pair[0] for pair in pairs]
    gaps = {b - a for a, b in zip([-1, *ours[:-1]], ours, strict=True)}
    assert gaps <= {deep // shallow, -(-deep // shallow)}, "two neighbours are as near as any other two, within one"
    assert sorted(pairs) == pairs
    assert depth_map(m, n, "spread") == [(j, i) for i, j in pairs]
    if n == m:
        assert depth_map(n, m, "same") == pairs
    if deep % shallow == 0:
        assert depth_map(n, m, "every-k") == pairs


@pytest.mark.parametrize(
    ("n", "m", "kind", "facts"),
    [
        (12, 6, "same", ("depths='same'", 12, 6, "depths='every-k'")),
        (6, 4, "same", ("depths='same'", 6, 4, "depths='spread'")),
        (6, 4, "every-k", ("depths='every-k'", 6, 4, "depths='spread'")),
        (0, 4, "spread", (0, 4)),
        (4, 4, "sprad", ("depths", "'sprad'", "'spread'", "every-k")),
    ],
)
def test_depths_that_do_not_fit(n: int, m: int, kind: str, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        depth_map(n, m, kind)
