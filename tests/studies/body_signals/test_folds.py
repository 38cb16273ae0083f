"""Folds of people: nobody in two splits, everybody tested once."""

from __future__ import annotations

import pytest

from bayes_adapters.errors import ConfigError
from examples.studies.body_signals.data import Fold, make_fold
from tests.refusals import refuses


@pytest.mark.parametrize("seed", range(7))
def test_nobody_is_in_two_splits(seed: int) -> None:
    fold = make_fold(range(2, 36), seed)
    parts = [set(fold.train), set(fold.validation), set(fold.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 34
    assert len(fold.validation) == 5
    assert len(fold.test) in {6, 7}
    assert Fold.from_json(fold.to_json()) == fold


def test_five_seeds_test_everybody_once_and_the_next_five_differently() -> None:
    first, second = ([make_fold(range(34), s).test for s in range(start, start + 5)] for start in (0, 5))
    assert sorted(p for part in first for p in part) == sorted(p for part in second for p in part) == list(range(34))
    assert set(first).isdisjoint(second)


@pytest.mark.parametrize(("people", "options"), [(6, {}), (34, {"folds": 1}), (34, {"validation": 0}), (3, {})])
def test_folds_that_cannot_be(people: int, options: dict[str, int]) -> None:
    with refuses(ConfigError, f"{people} people", f"{options.get('folds', 5)} folds", "seed 0"):
        make_fold(range(people), 0, **options)
    with refuses(ConfigError, "34 people", "seed -1"):
        make_fold(range(34), -1)
