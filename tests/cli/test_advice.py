"""Words beside a probability: claims and advice."""

from __future__ import annotations

import math

import pytest

from bayes_adapters.speech.verify import advice, claim
from tests.cli.parts import LIMITS


@pytest.mark.parametrize(
    ("total", "epistemic", "trusted", "says"),
    [
        (0.3, 0.02, True, ["Trust it"]),
        (0.4, 0.02, False, ["Check it by ear", "0.4 nats", "above 0.3", "10 %"]),
        (0.41, 0.02, False, ["Check it by ear", "total", "0.41 nats", "90th", "(0.4)"]),
        (0.3, 0.03, False, ["Check it by ear", "epistemic", "0.03 nats", "90th", "(0.02)"]),
        (0.7, 0.02, False, ["Do not rely", "total", "99th", "(0.6)", "open"]),
        (0.7, 0.08, False, ["Do not rely", "epistemic", "0.08 nats", "99th", "(0.05)", "unlike the training data"]),
        (math.nan, 0.0, False, ["Do not rely"]),
    ],
)
def test_advice(total: float, epistemic: float, trusted: bool, says: list[str]) -> None:
    sentence, answer = advice(total, epistemic, LIMITS)
    assert answer is trusted
    assert all(phrase in sentence for phrase in says), sentence


def test_claims_are_in_order() -> None:
    said = [claim(p).split()[0:2] for p in (0.95, 0.9, 0.7, 0.61, 0.6, 0.5, 0.4, 0.39, 0.2, 0.1, 0.0)]
    assert [" ".join(s) for s in said] == [
        *["Yes, this"] * 2, *["Probably yes:"] * 2, *["Undecided: the"] * 3, *["Probably not:"] * 2, *["No, this"] * 2
    ]  # fmt: skip
