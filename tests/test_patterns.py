"""Patterns of paths: what ``re`` says, in bounded time."""

from __future__ import annotations

import random
import re

import pytest

from bayes_adapters import select
from bayes_adapters.adapters._pattern import matches
from bayes_adapters.errors import TargetError
from tests.helpers import bert
from tests.refusals import refuses

ATOMS = ["a", "b", ".", r"\.", "[ab]", "[^a]", r"\d", r"\w", "[a-c0-9.]", "1", r"[\d.]", "A", r"\S", r"[^\w]"]
REPEATS = ["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "{3,}?", "{0}"]
ANCHORS = ["^", "$", r"\b", "(?<=a)", "(?<!b)", r"\A", r"\Z"]


def pattern(rng: random.Random, depth: int) -> str:
    choice = rng.random()
    if depth == 0 or choice < 0.35:
        return rng.choice(ATOMS)
    first, second = pattern(rng, depth - 1), pattern(rng, depth - 1)
    if choice < 0.55:
        return first + second
    if choice < 0.7:
        return f"({first}|{second})"
    if choice < 0.9:
        return f"(?:{first}){rng.choice(REPEATS)}"
    return f"(?={first})" if choice < 0.94 else f"(?!{first})" if choice < 0.97 else rng.choice(ANCHORS)


def test_the_answer_is_that_of_re() -> None:
    rng = random.Random(0)
    answers = []
    for _ in range(4000):
        text, path = pattern(rng, 4), "".join(rng.choice("ab.1cA") for _ in range(rng.randint(0, 7)))
        if rng.random() < 0.1:
            text = f"(?i){text}"
        for whole in (True, False):
            expected = (re.fullmatch(text, path) if whole else re.match(text, path)) is not None
            assert matches(text, path, whole=whole) is expected, (text, path, whole)
            answers.append(expected)
    assert 0.1 < sum(answers) / len(answers) < 0.9


@pytest.mark.parametrize(
    "text",
    [
        "(([a-z]|[a-z0-9.])+)+!",
        "(a|a)*!",
        "((a*)*)*!",
        "(a?){500}a{500}!",
        ".*" * 40 + "!",
        "(a{0,1000}){0,1000}!",
        "((a{1000,}){1000,}){1000,}",
        "(?=(a|a)*!)a*",
        "(a|a)" * 60 + "!",
    ],
)
def test_what_would_take_years(text: str) -> None:
    assert not matches(text, "a" * 100)


@pytest.mark.parametrize(
    "text",
    ["(", "*a", "[", r"(.)\1", "(?P<x>a)(?P=x)", "a++", "(?>a)", "(?i:a)", "(a)?(?(1)b|c)", "(" * 3000 + ")" * 3000],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the classes of its callers say what the pattern was
        matches(text, "aaaa")
    with refuses(TargetError, repr(text)):
        select(bert(), text)


def test_targets_may_look_ahead() -> None:
    found = select(bert(), r"(?!pooler).*(?<!intermediate)\.dense")
    assert found
    assert not [path for path in found if path.startswith("pooler") or "intermediate" in path]
