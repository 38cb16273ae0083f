"""The helper that asserts errors can fail, and no test asserts an error's prose."""

from __future__ import annotations

import warnings

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
