"""Differences over folds and scripts together, and who wins."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bayes_adapters.errors import DataError
from examples.studies.backbones import differences as d
from examples.studies.backbones.experiment import CONDITIONS, METHODS
from examples.studies.verify_prompts.controls import losses
from examples.studies.verify_prompts.predictions import Prediction
from tests.refusals import refuses

CELL = "minilm-whisper4"


def rows(method: str, ahead: float, folds: int = 5) -> list[Prediction]:
    """Answers whose NLL is ``.7 − ahead``, give or take what a fold and a recording add, and .3 less without audio."""
    found = []
    for fold in range(folds):
        for condition in CONDITIONS:
            for n in range(2 if condition == "ood-ru" else 6):
                wobble = 0.01 * (n % 3 - 1) + 0.002 * fold
                nll = 0.7 - ahead * (1 + wobble) - 0.3 * (condition == "missing") * (ahead > 0)
                labels = (0,) if condition.startswith("ood") else (1, 0)
                for label in labels:
                    p = math.exp(-nll) if label else 1 - math.exp(-nll)
                    pair = (f"en/{fold}-{n}", f"{fold}-{n}-{label}", label)
                    name = f"{CELL}-{method}-temperature"
                    found.append(Prediction(name, fold, "test", condition, *pair, p, 0.5, 0.4, 0.1))
    return found


@pytest.mark.parametrize("fold_effect", [0.0, 0.5])
def test_intervals_hold_the_truth_as_often_as_they_say(fold_effect: float) -> None:
    rng = np.random.default_rng(0)
    held, widths = [], []
    for _ in range(150):
        table = 1.0 + fold_effect * rng.standard_normal((5, 1)) + rng.standard_normal((5, 12))
        mean, low, high, p_value = d.over_folds(table.tolist())
        assert mean == pytest.approx(table.mean())
        assert (p_value < 0.05) == (low > 0 or high < 0)
        held.append(low <= 1.0 <= high)
        widths.append(high - low)
    assert 0.91 <= np.mean(held) <= 1  # the larger of two variances is taken
    # Without folds' own effect most intervals have the scripts' degrees of freedom.
    exact = 2 * 2.0 * math.sqrt(fold_effect**2 / 5 + 1 / 60)
    assert np.median(widths) == pytest.approx(exact, rel=0.35)


def test_conditions_count_alike_and_folds_are_apart() -> None:
    said = losses(rows("caliber-g", 0.1) + rows("lora-fusion", 0.0))
    one, two = ((f"{CELL}-{m}-temperature", 2) for m in ("caliber-g", "lora-fusion"))
    corrupted = d.by_script(said, one, two, d.COLUMNS["corrupted"])
    assert len(corrupted) == 6  # a recording's right and wrong script, in all conditions, are one unit
    assert np.mean(corrupted) == pytest.approx(-0.1 * 1.004 - 0.1)
    foreign = d.by_script(said, one, two, d.COLUMNS["foreign"])
    assert np.mean(foreign) == pytest.approx(-0.1 * (1.004 + 0.999) / 2)
    said[one]["clean"].popitem()
    with refuses(DataError, "different pairs", "fold 2", "'clean'"):
        d.by_script(said, one, two, ("clean",))


def test_the_winner_of_a_cell_is_named_and_bold_where_it_is_sure(tmp_path: Path) -> None:
    ahead = {"caliber-g": 0.05, "caliber-x": 0.2, "caliber-shared-kv": -0.1, "cross-attention": -0.2}
    measured = [row for method in METHODS for row in rows(method, ahead.get(method, 0.0))]
    found = d.differences(measured)
    assert len(found) == len(d.PAIRS) * len(d.COLUMNS)
    d.write(tmp_path / "found.json", found)
    assert d.read(tmp_path / "found.json") == found
    lines = d.tables(found)
    assert len(lines["backbones_wins"]) == 2 + 1
    assert lines["backbones_wins"][2].startswith("| MiniLM × Whisper 4/4 | **caliber-x** −.20")
    assert lines["backbones_wins"][2].count("**caliber-x**") == 4
    assert len(lines["backbones_differences"]) == 2 + len(d.PAIRS)
    assert lines["backbones_differences"][-1].startswith("| MiniLM × Whisper 4/4: caliber-x − cross-attention | −.4")

    behind = [row for row in measured if "caliber-x" not in row.method and "caliber-g" not in row.method]
    assert "| **late fusion**; caliber-shared-kv +.1" in d.tables(d.differences(behind))["backbones_wins"][2]
    unsure = [one._replace(p_value=0.02) for one in found]
    assert "**" not in d.tables(unsure)["backbones_wins"][2], "Holm multiplies by the number of differences"


def test_nothing_is_said_of_a_single_fold() -> None:
    one = rows("caliber-g", 0.1, folds=1) + rows("lora-fusion", 0.0)
    assert d.differences(one) == []
    assert d.tables([]) == {"backbones_wins": [], "backbones_differences": []}
    with refuses(DataError, "1 folds"):
        d.over_folds([[0.0, 1.0]])
