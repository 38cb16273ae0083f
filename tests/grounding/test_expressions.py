"""What expressions mean, by hand-made scenes; and that no expression of a data set means two things."""

from __future__ import annotations

import random

import pytest

from bayes_adapters.errors import DataError
from examples.grounding import expressions
from examples.grounding.expressions import FORMS, Expression, Noun, meaning, parse, referent, referring
from examples.grounding.scenes import Thing
from tests.refusals import refuses


def thing(kind: str, x: float, y: float, size: float = 0.2, colour: str | None = None) -> Thing:
    half = size / 2
    return Thing(kind, colour, (x - half, y - half, x + half, y + half), size)


DOG, CAT_LEFT, CAT_RIGHT = thing("dog", 0.5, 0.5), thing("cat", 0.2, 0.2, 0.1), thing("cat", 0.9, 0.6, 0.2)
SCENE = (DOG, CAT_LEFT, CAT_RIGHT)
TINTED = (thing("cat", 0.2, 0.2, 0.2, "red"), thing("cat", 0.8, 0.3, 0.1, "red"), thing("cat", 0.5, 0.8, 0.1, "blue"))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("the dog", 0),
        ("the smaller cat", 1),
        ("the bigger cat", 2),
        ("the leftmost cat", 1),
        ("the rightmost cat", 2),
        ("the highest cat", 1),
        ("the lowest cat", 2),
        ("the cat left of the dog", 1),
        ("the cat right of the dog", 2),
        ("the cat above the dog", 1),
        ("the cat below the dog", 2),
        ("the cat closest to the dog", None),  # .424 and .412: nobody could say
        ("the cat", None),
        ("the dog left of the cat", None),  # which cat?
        ("the dog right of the cat", None),
        ("the horse", None),
        ("the cat left of the cat", None),
        ("the smaller dog", None),  # a comparative of one
    ],
)
def test_meaning(text: str, target: int | None) -> None:
    assert str(parse(text)) == text
    assert referent(parse(text), SCENE) == target


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("the blue cat", 2),
        ("the red cat", None),
        ("the bigger red cat", 0),
        ("the smaller cat", None),  # of three
        ("the biggest cat", 0),
        ("the smallest cat", None),  # two are as small
        ("the red cat left of the blue cat", 0),
        ("the red cat farthest from the blue cat", None),
    ],
)
def test_colours(text: str, target: int | None) -> None:
    assert str(parse(text)) == text
    assert referent(parse(text), TINTED) == target


def test_what_is_nearly_true_is_unsure() -> None:
    aside = Expression(Noun("cat"), relation="left of", landmark=Noun("dog"))
    for by, sure, unsure in [(0.09, {1}, set()), (0.05, set(), {1}), (0.01, set(), set()), (-0.2, set(), set())]:
        assert meaning(aside, (DOG, thing("cat", 0.5 - by, 0.1))) == (sure, unsure)
    smaller = Expression(Noun("cat"), rank="smaller")
    assert meaning(smaller, (thing("cat", 0.1, 0.1, 0.10), thing("cat", 0.5, 0.5, 0.12))) == (set(), {0, 1})
    assert meaning(smaller, (thing("cat", 0.1, 0.1, 0.10), thing("cat", 0.5, 0.5, 0.13))) == ({0}, set())


def test_nothing_is_said_that_is_not_needed() -> None:
    found = {str(expression): target for target, expression in referring(SCENE)}
    assert found["the dog"] == 0  # no other dog, so that nothing more is said of it
    assert found["the smaller cat"] == 1
    coloured = {str(expression): target for target, expression in referring(TINTED)}
    assert coloured["the blue cat"] == 2
    assert coloured["the leftmost cat"] == 0
    assert "the leftmost red cat" not in coloured  # the same one
    assert coloured["the bigger red cat"] == 0


def test_every_expression_is_proven_from_its_words() -> None:
    """Random scenes; the meaning is computed again here, in other words, for ranks and sides."""
    rng = random.Random(1)
    forms = set()
    for _ in range(60):
        colours = [rng.choice(["red", "blue"]) for _ in range(6)] if rng.random() < 0.5 else [None] * 6
        places = rng.sample([(x / 8, y / 8) for x in range(1, 8) for y in range(1, 8)], 6)
        kinds = ["cat", "cat", "cat", "dog", "dog", "pig"]
        things = [
            thing(kind, x, y, rng.uniform(0.05, 0.12), colour)
            for kind, (x, y), colour in zip(kinds, places, colours, strict=True)
        ]
        for target, expression in referring(things):
            forms.add(expression.form)
            read = parse(str(expression))
            assert read == expression
            assert referent(read, things) == target
            assert obvious(str(expression), things) == {target}
    assert forms == set(FORMS)


def obvious(text: str, things: list[Thing]) -> set[int]:
    """A reader of its own: cuts the words by hand and compares without margins."""
    front, _, mark = text.replace("the ", "", 1).partition(" the ")
    words = front.split()
    relation = next(
        (r for r in ("left of", "right of", "above", "below", "closest to", "farthest from") if r in front), ""
    )
    words = words[: len(words) - len(relation.split())]
    named = [i for i, t in enumerate(things) if t.kind == words[-1]]
    adjectives = words[:-1]
    if adjectives and adjectives[-1] in ("red", "blue"):
        colour = adjectives.pop()
        named = [i for i in named if things[i].colour == colour]
    x, y = (lambda i: things[i].centre[0]), (lambda i: things[i].centre[1])
    size = lambda i: things[i].size  # noqa: E731
    keys = {"leftmost": (x, min), "rightmost": (x, max), "highest": (y, min), "lowest": (y, max)}
    keys |= dict.fromkeys(("smaller", "smallest"), (size, min)) | dict.fromkeys(("bigger", "biggest"), (size, max))
    if adjectives:
        key, extreme = keys[adjectives[0]]
        return {extreme(named, key=key)}
    if not relation:
        return set(named)
    *tint, kind = mark.split()
    (at,) = [i for i, t in enumerate(things) if t.kind == kind and (not tint or t.colour == tint[0])]
    away = lambda i: (x(i) - x(at)) ** 2 + (y(i) - y(at)) ** 2  # noqa: E731
    if relation in ("closest to", "farthest from"):
        return {(min if relation == "closest to" else max)(named, key=away)}
    holds = {"left of": lambda i: x(i) < x(at), "right of": lambda i: x(i) > x(at)}
    holds |= {"above": lambda i: y(i) < y(at), "below": lambda i: y(i) > y(at)}
    clear = expressions.MARGIN / 4
    far = {i for i in named if max(abs(x(i) - x(at)) if "of" in relation else abs(y(i) - y(at)), 0) > clear}
    return {i for i in far if holds[relation](i)}


@pytest.mark.parametrize(
    "text", ["cat", "the big old cat of the dog", "the smaller cat left of the dog", "the cat left of the"]
)
def test_other_words_are_refused(text: str) -> None:
    with refuses(DataError, text.split()[-1]):
        parse(text)
