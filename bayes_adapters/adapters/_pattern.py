"""Regular expressions of module paths, matched in bounded time.

Python's ``re`` backtracks: ``([a-z]|[a-z0-9.])+!`` takes 2ⁿ steps on a path of n characters, and patterns come from
files of others (PEFT's ``rank_pattern``). Here the set of all ends of each part of a pattern is found once for each
place in the path, so that m parts and a path of n characters take at most some m · n² steps. Whether a path matches
depends neither on greed nor on the order of alternatives; what does (back references, conditions, atomic groups,
possessive quantifiers) is refused.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable
from typing import Any

_parser: Any = importlib.import_module("re._parser")  # the parser of `re` itself: the same language, the same errors

_PLAIN = re.compile(r"(?:[^\\\[(*+?{]|\\[.\-_|])*")
"""Neither groups nor repeats: `re` matches these without backtracking, and much faster."""

_LONGEST = 100_000
_IGNORE_CASE = re.IGNORECASE.value
_HARMLESS = re.UNICODE.value | _IGNORE_CASE | re.VERBOSE.value | re.DOTALL.value  # paths hold no line ends

_CHARACTERS = {"LITERAL", "NOT_LITERAL", "ANY", "IN"}
_REPEATS = {"MAX_REPEAT", "MIN_REPEAT"}
_Ends = frozenset[int]


def matches(pattern: str, path: str, *, whole: bool = True) -> bool:
    r"""Say whether ``pattern`` matches ``path``, all of it or its beginning, as ``re.fullmatch`` and ``re.match`` do.

    Raises:
        ValueError: the pattern is no regular expression (``re.error`` is turned into one), has a part that cannot be
            matched in bounded time, or is longer than 100,000 characters without being a list of plain names.

    >>> matches(r".*layer\.(0|1)\..*", "encoder.layer.1.query"), matches("(([a-z]|[a-z0-9.])+)+!", "a" * 60)
    (True, False)
    """
    if _PLAIN.fullmatch(pattern):
        plain = _compiled(pattern)
        return (plain.fullmatch(path) if whole else plain.match(path)) is not None
    nodes, fold = _parsed(pattern)
    ends = _Search(path, fold).sequence(nodes, frozenset({0}))
    return len(path) in ends if whole else bool(ends)


@functools.lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(str(error)) from error


@functools.lru_cache(maxsize=256)
def _parsed(pattern: str) -> tuple[Any, bool]:
    """Return the parts of ``pattern``, and whether capitals do not count."""
    if len(pattern) > _LONGEST:
        raise ValueError(f"it has {len(pattern)} characters, more than {_LONGEST}")
    try:
        tree = _parser.parse(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("its groups are nested too deeply") from error
    if tree.state.flags & ~_HARMLESS:
        raise ValueError("it has flags other than i, s, u and x")
    return tree, bool(tree.state.flags & _IGNORE_CASE)


class _Search:
    """One path, and the ends of each part of a pattern from each start, each found once."""

    def __init__(self, path: str, fold: bool) -> None:
        self.path, self.fold = path, fold
        self._known: dict[tuple[int, int], _Ends] = {}

    def sequence(self, nodes: Any, starts: _Ends) -> _Ends:
        """Return where ``nodes``, one after the other, can end from any of ``starts``."""
        for node in nodes:
            if not starts:
                break
            if str(node[0]) in _REPEATS and len(node[1][2]) == 1 and str(node[1][2][0][0]) in _CHARACTERS:
                starts = self._repeat(node[1], starts)  # all starts at once: most repeats are of one character
            else:
                starts = frozenset().union(*(self._ends(node, start) for start in starts))
        return starts

    def _ends(self, node: Any, start: int) -> _Ends:
        key = (id(node), start)
        if key not in self._known:
            try:
                self._known[key] = self._find(str(node[0]), node[1], start)
            except RecursionError as error:
                raise ValueError("its groups are nested too deeply") from error
        return self._known[key]

    def _find(self, kind: str, value: Any, start: int) -> _Ends:
        one = frozenset({start})
        if kind in _CHARACTERS:
            fits = start < len(self.path) and self._fits(kind, value, self.path[start])
            return frozenset({start + 1}) if fits else frozenset()
        if kind == "BRANCH":
            return frozenset().union(*(self.sequence(branch, one) for branch in value[1]))
        if kind == "SUBPATTERN":
            _, added, removed, nodes = value
            if added or removed:
                raise ValueError("it sets flags for a part of itself")
            return self.sequence(nodes, one)
        if kind in _REPEATS:
            return self._repeat(value, one)
        if kind == "AT":
            return one if self._stands(str(value), start) else frozenset()
        if kind in {"ASSERT", "ASSERT_NOT"}:
            direction, nodes = value
            found = bool(self.sequence(nodes, one)) if direction > 0 else self._behind(nodes, start)
            return one if found == (kind == "ASSERT") else frozenset()
        raise ValueError(f"it has a part of the kind {kind.lower()}, which cannot be matched in bounded time")

    def _repeat(self, repeat: tuple[int, Any, Any], starts: _Ends) -> _Ends:
        """Ends after ``least`` to ``most`` rounds; at most n + 1 rounds bring new ones."""
        least, most, nodes = repeat
        found: _Ends = starts if least == 0 else frozenset()
        seen: list[_Ends] = []
        rounds = 0
        while starts and rounds < int(most):
            starts = self.sequence(nodes, starts)
            rounds += 1
            if rounds >= least:
                if starts <= found:
                    break
                found |= starts
            elif starts in seen:  # empty rounds: those that are missing change nothing more
                return found | self._repeat((0, int(most) - rounds, nodes), starts)
            seen.append(starts)
        return found

    def _behind(self, nodes: Any, end: int) -> bool:
        return any(end in self.sequence(nodes, frozenset({start})) for start in range(end + 1))

    def _stands(self, where: str, place: int) -> bool:
        last = len(self.path)
        if where in {"AT_BEGINNING", "AT_BEGINNING_STRING"}:
            return place == 0
        if where in {"AT_END", "AT_END_STRING"}:
            return place == last or (where == "AT_END" and place == last - 1 and self.path[place] == "\n")
        if where in {"AT_BOUNDARY", "AT_NON_BOUNDARY"}:
            sides = [0 <= i < last and (self.path[i].isalnum() or self.path[i] == "_") for i in (place - 1, place)]
            return (sides[0] != sides[1]) == (where == "AT_BOUNDARY")
        raise ValueError(f"it has a part of the kind {where.lower()}")

    def _fits(self, kind: str, value: Any, character: str) -> bool:
        if kind == "ANY":
            return character != "\n"
        forms = {character, character.lower(), character.upper()} if self.fold else {character}
        if kind == "IN":
            negated = str(value[0][0]) == "NEGATE"
            return negated != any(_in(str(name), item, form) for name, item in value for form in forms)
        return (ord(character) == value or chr(value) in forms) == (kind == "LITERAL")


def _in(name: str, item: Any, character: str) -> bool:
    r"""Whether one item of a set, such as ``a-z`` or ``\d``, holds the character."""
    if name == "LITERAL":
        return ord(character) == item
    if name == "RANGE":
        return item[0] <= ord(character) <= item[1]
    if name == "CATEGORY":
        test, negated = _CATEGORIES[str(item).removeprefix("CATEGORY_").removeprefix("NOT_")], "_NOT_" in str(item)
        return test(character) != negated
    return False  # NEGATE, which stands first


_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": lambda character: character.isalnum() or character == "_",
}
