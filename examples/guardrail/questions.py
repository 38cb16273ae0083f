"""Questions of arithmetic, of the kind that is learnt and of kinds that are not; their answers are known."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection
from typing import NamedTuple

LEARNT = "sums"
"""The kind that is learnt, and whose questions calibrate the guard."""


class Question(NamedTuple):
    """A question and what a calculator says."""

    kind: str
    text: str
    answer: str


def _number(rng: random.Random, digits: int) -> int:
    """Every number of digits is as likely as every other."""
    return int(rng.randrange(10 ** rng.randint(1, digits)))


def _sum(rng: random.Random) -> tuple[str, int]:
    a, b = _number(rng, 3), _number(rng, 3)
    return f"{a} + {b}", a + b


def _longer(rng: random.Random) -> tuple[str, int]:
    a, b = rng.randrange(1000, 10000), rng.randrange(1000, 10000)
    return f"{a} + {b}", a + b


def _three(rng: random.Random) -> tuple[str, int]:
    a, b, c = (_number(rng, 2) for _ in range(3))
    return f"{a} + {b} + {c}", a + b + c


def _difference(rng: random.Random) -> tuple[str, int]:
    a, b = sorted((_number(rng, 3), _number(rng, 3)), reverse=True)
    return f"{a} - {b}", a - b


KINDS: dict[str, Callable[[random.Random], tuple[str, int]]] = {
    LEARNT: _sum,
    "longer": _longer,
    "three": _three,
    "differences": _difference,
}
"""Kind → what makes one: sums of two numbers of up to three digits; of four digits; of three numbers; differences."""


def ask(kind: str, count: int, seed: int, without: Collection[Question] = ()) -> list[Question]:
    """Return different questions of one kind, the same at every call.

    Args:
        kind: of :data:`KINDS`.
        count: how many.
        seed: of the choice.
        without: questions that are left out.

    >>> ask("differences", 1, seed=0)
    [Question(kind='differences', text='What is 834 - 6? Answer:', answer='828')]
    """
    rng, known = random.Random(f"{kind}/{seed}"), set(without)
    found: list[Question] = []
    while len(found) < count:
        text, value = KINDS[kind](rng)
        question = Question(kind, f"What is {text}? Answer:", str(value))
        if question not in known:
            known.add(question)
            found.append(question)
    return found
