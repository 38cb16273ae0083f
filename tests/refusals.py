"""Errors and warnings by class and by the values they name, not by their prose."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def _missing(message: str, facts: tuple[object, ...]) -> list[str]:
    """Facts that do not stand in ``message`` as whole tokens: 3 is not in 13 or 2.3, nor 'lora' in 'lora_alpha'."""
    missing = []
    for fact in map(str, facts):
        before = r"(?<!\w)(?<!\d\.)" if fact[:1].isalnum() else ""
        after = r"(?!\w|\.\d)" if fact[-1:].isalnum() else ""
        if not re.search(before + re.escape(fact) + after, message):
            missing.append(fact)
    return missing


@contextmanager
def refuses(error: type[BaseException], *facts: object) -> Iterator[list[BaseException]]:
    """Fail unless the block raises exactly ``error``, no subclass, whose message names each of ``facts``.

    A fact is what the caller gave or what is allowed: a value, an option's name, a path, a shape. The list yielded
    holds the error once the block has ended.
    """
    raised: list[BaseException] = []
    try:
        yield raised
    except BaseException as caught:
        if type(caught) is not error:
            raise
        raised.append(caught)
    if not raised:
        raise AssertionError(f"nothing was raised; expected {error.__name__}")
    missing = _missing(str(raised[0]), facts)
    assert not missing, f"{error.__name__} does not name {missing}: {raised[0]}"


@contextmanager
def warns(category: type[Warning], *facts: object) -> Iterator[list[str]]:
    """Fail unless the block warns with exactly ``category``, in one message that names each of ``facts``.

    Other warnings of the block go on to whoever listens. The list yielded holds the texts once the block has ended.
    """
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    for warning in caught:
        if warning.category is category:
            texts.append(str(warning.message))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    near = [_missing(text, facts) for text in texts]
    assert any(not missing for missing in near), f"no {category.__name__} names {list(facts)}; given: {texts}"
