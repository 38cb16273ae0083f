"""Errors that say what was given, what is allowed, the likely cause and the fix.

Each class is also the built-in error a caller would expect (``ValueError`` or ``RuntimeError``), so code that
catches the built-in keeps working.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable
from enum import Enum
from typing import TypeVar

_E = TypeVar("_E", bound=Enum)


class BayesAdaptersError(Exception):
    """Base class of every error this library raises on purpose."""


class ConfigError(BayesAdaptersError, ValueError):
    """An option, name or combination of model, prior and guide that cannot work."""


class TargetError(ConfigError):
    """The target specification matches no layer, or matches one that cannot be adapted."""


class DataError(BayesAdaptersError, ValueError):
    """A batch, data set or recording that cannot be used."""


class FoldError(DataError):
    """A pass with so many draws and examples that an adapted layer cannot tell which of its rows belong to which.

    DeBERTa applies its query and key layers to a table of relative positions, of which there is one for all draws.
    """


class NonFiniteError(BayesAdaptersError, FloatingPointError):
    """A NaN or an infinity in the inputs, the loss or the gradients; no weight was changed by that step."""


class AdapterFileError(BayesAdaptersError, ValueError):
    """A saved adapter that is incomplete, corrupted, foreign, or made for another backbone."""


class MissingResourceError(BayesAdaptersError, RuntimeError):
    """A backbone, data set or optional package that is neither installed nor reachable."""


def missing_package(use: str, package: str, extra: str) -> MissingResourceError:
    """Build the error for an optional ``package`` that is not installed: what needs it, and the extra that brings it.

    >>> print(missing_package("to_arviz()", "arviz", "arviz"))
    to_arviz() needs the package arviz. Install it from a checkout of bayes-adapters: pip install '.[arviz]'
    """
    return MissingResourceError(
        f"{use} needs the package {package}. Install it from a checkout of bayes-adapters: pip install '.[{extra}]'"
    )


class ScaleWarning(UserWarning):
    """Targets or context so far from unit scale that training would hardly move, or a posterior would saturate."""


class PointPosteriorWarning(UserWarning):
    """A posterior so narrow that its draws say little more than its mean."""


def near_matches(name: str, allowed: Iterable[str], count: int = 4, cutoff: float = 0.5) -> str:
    """Return ``" Did you mean 'a' or 'b'?"``, or an empty string when nothing in ``allowed`` is near ``name``.

    Capitals do not count.

    >>> near_matches("qery", ["query", "key", "value"])
    " Did you mean 'query' or 'key'?"
    >>> near_matches("C-LoRA", ["lora", "c-lora"])
    " Did you mean 'c-lora' or 'lora'?"
    >>> near_matches("zzz", ["query"])
    ''
    """
    folded: dict[str, list[str]] = {}
    for other in allowed:
        folded.setdefault(other.lower(), []).append(other)
    close = difflib.get_close_matches(name.lower(), folded, n=count, cutoff=cutoff)
    near = [other for key in close for other in folded[key]][:count]
    return f" Did you mean {' or '.join(repr(n) for n in near)}?" if near else ""


def unknown_name(kind: str, name: str, allowed: Iterable[str]) -> ConfigError:
    """Build the error for a ``kind`` (guide, option, …) that does not exist, listing all that do."""
    names = sorted(allowed)
    return ConfigError(
        f"Unknown {kind} {name!r}.{near_matches(str(name), names)} Allowed: {', '.join(names) or 'none'}."
    )


def described(value: object) -> str:
    """Say what an argument of the wrong type is: ``a list``, or ``the class Categorical``, which lacks its call.

    >>> described([]), described(ConfigError)
    ('a list', 'the class ConfigError')
    """
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def whole_number(name: str, value: object, least: int = 1) -> None:
    """Raise :class:`ConfigError` unless ``value``, given as ``name``, is an int of at least ``least``.

    >>> whole_number("rank", 8)
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}; got {value!r}.")


def positive_number(name: str, value: object) -> None:
    """Raise :class:`ConfigError` unless ``value``, given as ``name``, is a positive, finite number.

    >>> positive_number("prior_scale", 0.5)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:
        raise ConfigError(f"{name} must be a positive, finite number; got {value!r}.")


def true_or_false(name: str, value: object) -> None:
    """Raise :class:`ConfigError` unless ``value``, given as ``name``, is True or False: 1 may be meant for a number.

    >>> true_or_false("head", True)
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is True or False; got {value!r}.")


def integer(name: str, value: object) -> int:
    """Return ``value``, given as ``name``, as an int; numpy's integers are some.

    Raises:
        ConfigError: it is no integer.

    >>> integer("seed", -3)
    -3
    """
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError(f"{name} must be an integer; got {value!r}.") from None


def choice(kind: type[_E], name: str, value: object) -> _E:
    """Return the member of the enumeration ``kind`` that option ``name`` selects, or raise listing all members."""
    try:
        return kind(value)
    except ValueError:
        raise unknown_name(name, str(value), [str(m.value) for m in kind]) from None
