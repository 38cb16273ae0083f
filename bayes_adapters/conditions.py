"""Conditions on the numbers of tensors, read together: the host waits for a GPU wherever Python looks at a number.

A check computes, on the device, where its condition fails, and says how the error is made; :func:`refuse_where` raises
it. Within :func:`read_together` conditions are noted, and all of them are read at its end, in one wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Explain = Callable[[], Exception | None]
"""Looks closely and makes the error; None where a condition was cheaper than exact and nothing is wrong."""


@dataclass
class _Noted:
    failed: Tensor
    explain: Explain


_current: ContextVar[list[_Noted] | None] = ContextVar("bayes_adapters_conditions", default=None)


@dataclass
class _Unchanged:
    value: object
    looked: bool = False


_unchanged: ContextVar[_Unchanged | None] = ContextVar("bayes_adapters_unchanged", default=None)


def refuse_where(failed: Tensor, explain: Explain) -> None:
    """Raise the error that ``explain`` makes if any entry of ``failed`` is True, now or where conditions are read.

    Args:
        failed: bool, any shape.
        explain: called only then.

    >>> from bayes_adapters.errors import DataError
    >>> ages = torch.tensor([30, -1])
    >>> with read_together():
    ...     refuse_where(ages < 0, lambda: DataError(f"Ages {ages.tolist()} cannot be negative."))
    Traceback (most recent call last):
    ...
    bayes_adapters.errors.DataError: Ages [30, -1] cannot be negative.
    """
    noted = [_Noted(failed.any(), explain)]
    current = _current.get()
    if current is None:
        _read(noted)
    else:
        current += noted


@contextmanager
def read_together() -> Iterator[None]:
    """Within the context conditions are noted; at its end the error of the first that fails is raised.

    An error that is raised within it comes after those of the conditions noted before. A context within another leaves
    its conditions to that one.
    """
    if _current.get() is not None:
        yield
        return
    noted: list[_Noted] = []
    token = _current.set(noted)
    try:
        yield
    except Exception:
        _current.reset(token)
        _read(noted)
        raise
    _current.reset(token)
    _read(noted)


@contextmanager
def reworded(kind: type[Exception], word: Callable[[Exception], Exception]) -> Iterator[None]:
    """Within the context an error of this ``kind``, raised at once or where conditions are read, becomes another."""
    noted = _current.get()
    before = 0 if noted is None else len(noted)
    try:
        yield
    except kind as error:
        raise word(error) from error
    for one in [] if noted is None else noted[before:]:
        one.explain = _word(one.explain, kind, word)


def _word(explain: Explain, kind: type[Exception], word: Callable[[Exception], Exception]) -> Explain:
    def other() -> Exception | None:
        error = explain()
        return word(error) if isinstance(error, kind) else error

    return other


@contextmanager
def unchanged(value: object) -> Iterator[None]:
    """Within the context ``value`` stays as it is, so that it is looked at once: see :func:`first_look`."""
    token = _unchanged.set(_Unchanged(value))
    try:
        yield
    finally:
        _unchanged.reset(token)


def first_look(value: object) -> bool:
    """Say whether ``value`` has to be checked: within :func:`unchanged` only the first time.

    >>> batch = object()
    >>> with unchanged(batch):
    ...     [first_look(batch), first_look(batch), first_look(object())]
    [True, False, True]
    >>> first_look(batch), first_look(batch)
    (True, True)
    """
    kept = _unchanged.get()
    if kept is None or kept.value is not value:
        return True
    first, kept.looked = not kept.looked, True
    return first


def checked(family: Callable[..., Any], **parameters: Tensor) -> Any:
    """Return the distribution with these parameters, all of which are checked in one wait, as torch does one by one.

    Its draws and its data are not checked: targets are, once, by :meth:`bayes_adapters.Likelihood.accept`.

    Args:
        family: a class of ``pyro.distributions``.
        **parameters: its parameters.

    Raises:
        ValueError: torch's own, for a parameter outside its constraint, NaN say.
    """
    made = family(**parameters, validate_args=False)
    holds = [made.arg_constraints[name].check(getattr(made, name)).all() for name in parameters]

    def explain() -> Exception | None:
        try:
            family(**parameters, validate_args=True)
        except ValueError as error:
            return error
        return None

    refuse_where(~torch.stack(holds), explain)
    return made


def _read(noted: list[_Noted]) -> None:
    if not noted or not bool(torch.stack([one.failed for one in noted]).any()):
        return
    for one in noted:
        error = one.explain() if bool(one.failed) else None
        if error is not None:
            raise error
