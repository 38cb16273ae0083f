"""The example of training-free Bayesianization, on a handful of docstrings."""

from __future__ import annotations

import math

import pytest

from examples.studies.training_free import PACKAGES, docstrings, main
from tests.refusals import warns


def test_docstrings_are_those_of_the_standard_library() -> None:
    found = docstrings("logging")
    assert found == sorted(set(found))
    assert any("logging" in text for text in found)
    assert all(len(text.split()) >= 5 for text in found)
    assert all(len(docstrings(package)) >= 45 for package in PACKAGES), "the defaults need 20 + 25 of each"


def test_noise_changes_the_answers_more_where_more_is_tolerated(capsys: pytest.CaptureFixture[str]) -> None:
    with warns(UserWarning, "tolerance 1.5", "high="):  # hardly trained, the adapter tolerates any noise at 1.5
        rows = main(train=3, test=3, epochs=2, anchors=12)
    assert [name.partition(":")[0] for name in rows] == ["trained LoRA", "tolerance 0.003", "tolerance 1.5"]
    plain, little, much = (loss for loss, _, _ in rows.values())
    assert all(math.isfinite(value) for row in rows.values() for value in row)
    assert abs(much - plain) > abs(little - plain) > 0
    assert "24 docstrings not trained on" in capsys.readouterr().out
