"""Folds of scripts: no script in two splits, every recording tested once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bayes_adapters.errors import ConfigError
from examples.studies.backbones.folds import Folds
from examples.studies.verify_prompts.prompts import Prompt
from tests.refusals import refuses


def prompts(scripts: int = 40) -> list[Prompt]:
    """Every third script has a second recording, written otherwise, and there is one in Spanish."""
    found = [Prompt(f"k{n}", f"Script {n}.", Path("x"), "en", 1.0) for n in range(scripts)]
    found += [Prompt(f"again{n}", f"script {n}", Path("x"), "en", 1.0) for n in range(0, scripts, 3)]
    return [*found, Prompt("k1", "texto", Path("x"), "es", 1.0)]


def test_no_script_is_in_two_splits_and_every_recording_is_tested_once() -> None:
    folds = Folds.make(prompts(), 4)
    assert folds == Folds.make(list(reversed(prompts())), 4)
    assert folds != Folds.make(prompts(), 4, seed=1)
    tested: list[str] = []
    for number in range(4):
        splits = folds.splits(number, validation=7)
        parts = [splits.train, splits.validation, splits.test]
        scripts = [{folds.scripts[key] for key in part} for part in parts]
        assert sum(map(len, scripts)) == len(set.union(*scripts)) == 40
        assert sum(map(len, parts)) == 54
        assert len(splits.validation) in (7, 8)
        assert len(splits.test) in (13, 14)
        assert splits.seed == number
        tested += splits.test
    assert sorted(tested) == sorted(p.key for p in prompts() if p.language == "en")


def test_babble_is_made_of_what_is_tested_together() -> None:
    folds = Folds.make(prompts(), 4)
    for number, part in enumerate(folds.parts):
        assert folds.of(part[0]) == folds.splits(number, validation=3).test
    assert folds.of("unknown") == ()
    assert Folds.make(prompts(), 4, seed=1).to_json() != folds.to_json()


@pytest.mark.parametrize("count", [2, 41])
def test_folds_that_cannot_be(count: int) -> None:
    with refuses(ConfigError, "40 English scripts", str(count)):
        Folds.make(prompts(), count)
    folds = Folds.make(prompts(), 4)
    with refuses(ConfigError, "no fold 4"):
        folds.splits(4)
    with refuses(ConfigError, "Fold 1", "41 for validation"):
        folds.splits(1, validation=41)
