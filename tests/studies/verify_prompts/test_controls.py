"""The table of controls: NLL averaged over conditions, with intervals over seeds and scripts."""

from __future__ import annotations

import math

import pytest

from bayes_adapters.errors import DataError
from examples.studies.verify_prompts.controls import COLUMNS, difference, losses, table
from examples.studies.verify_prompts.predictions import Prediction
from tests.refusals import refuses

ONE, TWO = "caliber-x-fusion", "lora-fusion-temperature"


def _rows(method: str, better: float, seeds: int = 3) -> list[Prediction]:
    rows = []
    for seed in range(seeds):
        for condition in (c for conditions in COLUMNS.values() for c in conditions):
            for n in range(4):
                nll = 0.7 - better - 0.01 * seed * (method == ONE) - 0.02 * n * (method == ONE)
                nll -= 0.1 * (condition == "missing") * (method == ONE)
                for label in (0, 1):
                    p = math.exp(-nll) if label else 1 - math.exp(-nll)
                    rows.append(
                        Prediction(method, seed, "test", condition, f"en/{n}", f"{n}-{label}", label, p, 0, 0, 0)
                    )
    return rows


def test_a_difference_is_averaged_over_conditions_and_has_an_interval() -> None:
    said = losses(_rows(ONE, 0.1) + _rows(TWO, 0.0, seeds=4))
    clean = difference(said, ONE, TWO, COLUMNS["clean"])
    assert clean.difference == pytest.approx(-0.1 - 0.01 - 0.03)
    assert clean.low < clean.difference < clean.high < 0
    assert len(COLUMNS["corrupted"]) == 13
    corrupted = difference(said, ONE, TWO, COLUMNS["corrupted"])
    assert corrupted.difference == pytest.approx(clean.difference - 0.1 / 13)
    with refuses(DataError, "caliber-x", 0):
        difference(said, "caliber-x", TWO, COLUMNS["clean"])


def test_conditions_count_alike_however_many_pairs_they_have() -> None:
    rows = [r for r in _rows(ONE, 0.1) + _rows(TWO, 0.0) if r.condition != "ood-it" or r.recording < "en/2"]
    found = difference(losses(rows), ONE, TWO, ("ood-es", "ood-it"))
    assert found.difference == pytest.approx(-0.11 - (0.03 + 0.01) / 2)


def test_what_was_measured_is_in_the_table() -> None:
    lines = table(_rows(ONE, 0.1) + _rows(TWO, 0.0))
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {ONE} − {TWO}"]
    assert lines[2].count("−.1") >= 4
