"""The helper that asserts errors can fail, and no test asserts an error's prose."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.refusals import refuses, warns


def _raise(error: BaseException) -> None:
    raise error


def test_a_fact_is_a_whole_token() -> None:
    with refuses(ValueError, 3, "rank", "lora-x", [1, 2], "a.json") as raised:
        _raise(ValueError("rank must be 3; got [1, 2] in 'lora-x', see a.json."))
    assert isinstance(raised[0], ValueError)
    for fact in (2.5, "ran", "alpha", 13, "json.a"):
        with pytest.raises(AssertionError), refuses(ValueError, fact):
            _raise(ValueError("rank must be 3; got 12.5 in lora_alpha, see a.json."))


def test_the_class_is_exact_and_something_is_raised() -> None:
    with pytest.raises(FileNotFoundError), refuses(OSError):
        _raise(FileNotFoundError("x"))
    with pytest.raises(AssertionError), refuses(ValueError):
        pass


def _warn(*texts: str) -> None:
    for text in texts:
        warnings.warn(text, UserWarning, stacklevel=1)


def test_one_warning_names_all_facts() -> None:
    with warns(UserWarning, "p", 0.5) as texts:
        _warn("p is 0.5", "q is 1")
    assert texts == ["p is 0.5", "q is 1"]
    with pytest.raises(AssertionError), warns(UserWarning, "p", 0.5):
        _warn("p is 1", "q is 0.5")


def test_warnings_of_another_class_go_on() -> None:
    with warnings.catch_warnings(record=True) as others:
        warnings.simplefilter("always")
        with warns(UserWarning, 1):
            warnings.warn("old", DeprecationWarning, stacklevel=1)
            _warn("1")
    assert [w.category for w in others] == [DeprecationWarning]


def _prose(source: str) -> Iterator[int]:
    """Lines that call ``pytest.raises`` or ``pytest.warns`` with a pattern of the text, however they are imported."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("raises", "warns", "RaisesExc") and any(k.arg == "match" for k in node.keywords):
                yield node.lineno


def test_the_walk_finds_patterns() -> None:
    source = "with pytest.raises(E, match='x'), pytest.raises(E):\n    warns(W, match=x)\n    f(match=x)\n"
    assert list(_prose(source)) == [1, 2]


def test_no_test_matches_the_prose_of_an_error() -> None:
    folder = Path(__file__).parent
    found = [f"{path.relative_to(folder)}:{line}" for path in folder.rglob("*.py") for line in _prose(path.read_text())]
    assert not found, f"assert the class and the values it names, with tests/refusals.py: {sorted(found)}"
