"""Referring expressions: their grammar, what they mean, and the proof that one thing and no other is meant.

    the [rank] [colour] kind  [relation the [colour] kind]

with a rank or a relation, not both. What is nearly true is *unsure*: an expression is used only where exactly one
thing satisfies it, nothing is unsure, and no shorter form would do (:func:`referring`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from bayes_adapters.errors import DataError
from examples.grounding.scenes import Thing

MARGIN = 0.08
"""Left, right, above, below: centres must differ by this share of the scene. Under a quarter of it, it is not so."""
RATIO = 1.25
"""Sizes (sides, not areas) and distances must differ by this factor."""
SIZES = {"smaller": False, "bigger": True, "smallest": False, "biggest": True}
PLACES = {"leftmost": (0, False), "rightmost": (0, True), "highest": (1, False), "lowest": (1, True)}
SIDES = {"left of": (0, -1.0), "right of": (0, 1.0), "above": (1, -1.0), "below": (1, 1.0)}
NEARNESS = {"closest to": False, "farthest from": True}
FORMS = ("kind", "colour", "size", "place", "side", "nearness")
"""What the words go by: the kind alone, where there is one of it, or something beside it."""


class Noun(NamedTuple):
    """A kind, perhaps with a colour."""

    kind: str
    colour: str | None = None

    def __str__(self) -> str:
        return self.kind if self.colour is None else f"{self.colour} {self.kind}"

    def fits(self, thing: Thing) -> bool:
        """Whether the thing is one of these."""
        return thing.kind == self.kind and self.colour in (None, thing.colour)


@dataclass(frozen=True)
class Expression:
    """Words that mean one thing.

    Args:
        noun: what it is.
        rank: of :data:`SIZES` or :data:`PLACES`, among the things that the noun fits.
        relation: of :data:`SIDES` or :data:`NEARNESS`.
        landmark: what it is related to.

    >>> str(Expression(Noun("apple", "red"), relation="left of", landmark=Noun("dog")))
    'the red apple left of the dog'
    >>> parse("the smaller cat") == Expression(Noun("cat"), rank="smaller")
    True
    """

    noun: Noun
    rank: str | None = None
    relation: str | None = None
    landmark: Noun | None = None

    def __str__(self) -> str:
        front = f"the {self.noun}" if self.rank is None else f"the {self.rank} {self.noun}"
        return front if self.relation is None else f"{front} {self.relation} the {self.landmark}"

    @property
    def form(self) -> str:
        """One of :data:`FORMS`."""
        if self.rank is not None:
            return "size" if self.rank in SIZES else "place"
        if self.relation is not None:
            return "side" if self.relation in SIDES else "nearness"
        return "kind" if self.noun.colour is None else "colour"

    def shorter(self) -> Iterator[Expression]:
        """Yield the expression with one of its parts left out."""
        if self.rank is not None or self.relation is not None:
            yield Expression(self.noun)
        if self.noun.colour is not None:
            yield replace(self, noun=Noun(self.noun.kind))
        if self.landmark is not None and self.landmark.colour is not None:
            yield replace(self, landmark=Noun(self.landmark.kind))


def parse(text: str) -> Expression:
    """Read the words back.

    Raises:
        DataError: they are none of the grammar.
    """
    front, relation, back = text, None, None
    for known in (*SIDES, *NEARNESS):
        if f" {known} the " in text:
            front, _, back = text.partition(f" {known} the ")
            relation = known
    words = front.split()
    rank = words.pop(1) if len(words) > 2 and words[1] in (*SIZES, *PLACES) else None
    if words[:1] != ["the"] or (rank is not None and relation is not None):
        raise DataError(f"{text!r} is no expression of the form: the [rank] [colour] kind [relation the kind].")
    return Expression(_noun(words[1:], text), rank, relation, None if back is None else _noun(back.split(), text))


def _noun(words: Sequence[str], text: str) -> Noun:
    if len(words) not in (1, 2):
        raise DataError(f"{' '.join(words)!r} in {text!r} must be a kind, or a colour and a kind.")
    return Noun(words[-1], words[0] if len(words) == 2 else None)


class Meaning(NamedTuple):
    """Numbers of the things that satisfy an expression, and of those that nearly do or nearly do not."""

    sure: frozenset[int]
    unsure: frozenset[int]


_NOTHING = Meaning(frozenset(), frozenset())


def meaning(expression: Expression, things: Sequence[Thing]) -> Meaning:
    """Say which of the things an expression means.

    * A comparative (smaller, bigger) compares two; with another number of candidates it means nothing.
    * The extreme of a rank or a nearness must be ahead of the second by :data:`RATIO` or :data:`MARGIN`; otherwise all
      that are so near to the extreme are unsure.
    * A landmark must be a single thing, and not a candidate itself.
    """
    candidates = [i for i, thing in enumerate(things) if expression.noun.fits(thing)]
    if expression.rank is not None:
        return _ranked(expression.rank, candidates, things)
    if expression.relation is None or expression.landmark is None:
        return Meaning(frozenset(candidates), frozenset())
    marks = [i for i, thing in enumerate(things) if expression.landmark.fits(thing)]
    if len(marks) != 1 or marks[0] in candidates:
        return _NOTHING
    mark = things[marks[0]].centre
    if expression.relation in SIDES:
        axis, sign = SIDES[expression.relation]
        ahead = {i: sign * (things[i].centre[axis] - mark[axis]) for i in candidates}
        sure = {i for i, by in ahead.items() if by >= MARGIN}
        return Meaning(frozenset(sure), frozenset(i for i, by in ahead.items() if MARGIN / 4 < by < MARGIN))
    distance = {i: math.log(math.dist(things[i].centre, mark)) for i in candidates}
    return _extreme(distance, most=NEARNESS[expression.relation], margin=math.log(RATIO))


def _ranked(rank: str, candidates: Sequence[int], things: Sequence[Thing]) -> Meaning:
    if rank in SIZES:
        if rank in ("smaller", "bigger") and len(candidates) != 2:
            return _NOTHING
        return _extreme({i: math.log(things[i].size) for i in candidates}, SIZES[rank], math.log(RATIO))
    axis, most = PLACES[rank]
    return _extreme({i: things[i].centre[axis] for i in candidates}, most, MARGIN)


def _extreme(values: dict[int, float], most: bool, margin: float) -> Meaning:
    if not values:
        return _NOTHING
    best = max(values.values()) if most else min(values.values())
    near = frozenset(i for i, value in values.items() if abs(value - best) < margin)
    return Meaning(near, frozenset()) if len(near) == 1 else Meaning(frozenset(), near)


def referent(expression: Expression, things: Sequence[Thing]) -> int | None:
    """Return the number of the one thing that is meant, or None where that is not proven."""
    sure, unsure = meaning(expression, things)
    return next(iter(sure)) if len(sure) == 1 and not unsure else None


def referring(things: Sequence[Thing]) -> list[tuple[int, Expression]]:
    """Return every (thing, expression) that is proven, and of which no part can be left out.

    A target that has no other of its kind beside it is named by its kind alone.
    """
    pairs = ((referent(one, things), one) for one in _grammar(things))
    found = [(target, one) for target, one in pairs if target is not None]
    return [(i, one) for i, one in found if all(_fails(part, things) for part in one.shorter())]


def _fails(shorter: Expression, things: Sequence[Thing]) -> bool:
    """Whether the shorter expression says too little: nothing is proven by it."""
    return referent(shorter, things) is None


def _grammar(things: Sequence[Thing]) -> Iterator[Expression]:
    """Yield the expressions whose nouns are in the scene."""
    nouns = list(dict.fromkeys(Noun(t.kind, c) for t in things for c in (None, t.colour)))
    count = {noun: sum(noun.fits(thing) for thing in things) for noun in nouns}
    for noun in nouns:
        if count[noun] == 1:
            yield Expression(noun)
        else:
            pair = ("smaller", "bigger") if count[noun] == 2 else ("smallest", "biggest")
            yield from (Expression(noun, rank) for rank in (*pair, *PLACES))
            marks = [mark for mark in nouns if count[mark] == 1 and mark.kind != noun.kind]
            yield from (Expression(noun, None, by, mark) for by in (*SIDES, *NEARNESS) for mark in marks)
