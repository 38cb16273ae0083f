"""Models, guides, likelihoods, heads and priors by name: what saved adapters refer to and what third parties add.

Built-ins are the public classes in the public modules of ``bayes_adapters.models``, ``bayes_adapters.guides``,
``bayes_adapters.likelihoods``, ``bayes_adapters.heads`` and ``bayes_adapters.priors``: a file that is put there is
found. The distributions of Pyro need no registration.
Others come from :func:`register`, or from an installed package's entry points, whose name is the class's own::

    [project.entry-points."bayes_adapters.guides"]
    my_guide = "my_package.guides:MyGuide"
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
from enum import StrEnum
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType
from typing import Any, TypeVar

from pyro.distributions.torch_distribution import TorchDistributionMixin

from bayes_adapters.errors import ConfigError, choice, unknown_name
from bayes_adapters.heads import Head
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import Likelihood

_C = TypeVar("_C")


class Kind(StrEnum):
    """What can be registered."""

    MODEL = "model"
    """A subclass of ``AdapterModel``, by its ``structure``."""
    GUIDE = "guide"
    """A subclass of ``AdapterGuide``, by its ``name``."""
    LIKELIHOOD = "likelihood"
    """A subclass of ``Likelihood``, by its ``name``."""
    HEAD = "head"
    """A subclass of ``Head``, by its ``name``."""
    PRIOR = "prior"
    """A class of distributions, or of callables ``(name, shape)`` that return one, by its ``name``; or such a function,
    by its ``__name__``."""


_BASES: dict[Kind, type] = {
    Kind.MODEL: AdapterModel,
    Kind.GUIDE: AdapterGuide,
    Kind.LIKELIHOOD: Likelihood,
    Kind.HEAD: Head,
}
_registered: dict[Kind, dict[str, Any]] = {kind: {} for kind in Kind}


def names(kind: Kind | str) -> list[str]:
    """Return the names of everything of ``kind`` that can be found, sorted; entry points are not imported.

    >>> {"linear", "two_layer"} <= set(names("head"))
    True
    """
    kind = choice(Kind, "kind", kind)
    return sorted({*_built_in(kind), *_registered[kind], *_entry_points(kind)})


def find(kind: Kind | str, name: str) -> Any:
    """Return the class of ``kind`` called ``name``; of priors it may be a function.

    Raises:
        ConfigError: there is none (near matches are listed), two packages claim the name, or an entry point cannot be
            imported or is no such class.

    >>> find("guide", "mean_field").__name__
    'MeanField'
    """
    kind = choice(Kind, "kind", kind)
    found = {**_built_in(kind), **_registered[kind]}.get(name)
    offered = _entry_points(kind).get(name, [])
    claims = [f"{point.value} (entry point)" for point in offered if found is None or point.value != _location(found)]
    claims += [] if found is None else [_location(found)]
    if len(claims) > 1:
        raise ConfigError(
            f"The {kind.value} name {name!r} is claimed by {' and '.join(claims)}. Uninstall one, or rename it."
        )
    if found is not None:
        return found
    if not offered:
        raise unknown_name(kind.value, name, names(kind))
    return _load(kind, offered[0])


def register(cls: _C) -> _C:
    """Make a model, guide, likelihood, head or prior findable under its own name in this process; a decorator too.

    Args:
        cls: a subclass of ``AdapterModel`` with its own ``structure``, or of ``AdapterGuide``, ``Likelihood`` or
            ``Head`` with its own ``name``; or a prior: a distribution class with its own ``name`` and a method
            ``config``, a class of callables ``(name, shape)`` with these, or a function ``(name, shape)``.

    Returns:
        ``cls``. Registering the same class twice changes nothing.

    Raises:
        ConfigError: ``cls`` is none of these, has no name of its own, or the name is taken by another class.

    >>> from bayes_adapters.likelihoods import Categorical
    >>> @register
    ... class Sentiment(Categorical):
    ...     name = "sentiment"
    >>> find(Kind.LIKELIHOOD, "sentiment").__name__
    'Sentiment'
    """
    kind = next((kind for kind in Kind if _is_a(kind, cls)), None)
    if kind is None:
        raise ConfigError(
            "Only subclasses of AdapterModel, AdapterGuide, Likelihood and Head can be registered, and priors: a "
            f"distribution class, a class of callables (name, shape) with a method config, or a function; got {cls!r}."
        )
    name = name_of(kind, cls)
    taken = {**_built_in(kind), **_registered[kind]}.get(name)
    if taken is not None and taken is not cls:
        raise ConfigError(
            f"The {kind.value} name {name!r} belongs to {_location(taken)} already; give {_location(cls)} another name."
        )
    _registered[kind][name] = cls
    return cls


def name_of(kind: Kind | str, cls: Any) -> str:
    """Return the name a class says of itself, or a function's own.

    Raises:
        ConfigError: the class has none, or only the one it inherits from another class.
    """
    kind = choice(Kind, "kind", kind)
    if isinstance(cls, FunctionType):
        return cls.__name__
    attribute = _attribute(kind)
    name = vars(cls).get(attribute)
    if not isinstance(name, str) or not name:
        inherited = getattr(cls, attribute, None)
        has = f"inherits its {attribute} {inherited!r}" if isinstance(inherited, str) else f"has no {attribute}"
        raise ConfigError(
            f"The {kind.value} {cls.__name__} {has}, so a saved adapter could not say what it is. Add "
            f"`{attribute}: ClassVar[str]` to the class and register it with bayes_adapters.registry.register."
        )
    return name


def _attribute(kind: Kind) -> str:
    return "structure" if kind is Kind.MODEL else "name"


def _is_a(kind: Kind, thing: Any) -> bool:
    """Whether ``thing`` is a class of ``kind``, or, of priors, a function."""
    if kind is not Kind.PRIOR:
        return isinstance(thing, type) and issubclass(thing, _BASES[kind])
    if isinstance(thing, FunctionType):
        return True
    makes = isinstance(thing, type) and "__call__" in vars(thing)
    return isinstance(thing, type) and (issubclass(thing, TorchDistributionMixin) or makes) and hasattr(thing, "config")


def _built_in(kind: Kind) -> dict[str, type]:
    package = importlib.import_module(f"bayes_adapters.{kind.value}s")
    found: dict[str, type] = {}
    for file in pkgutil.iter_modules(package.__path__):
        if file.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package.__name__}.{file.name}")
        for key, cls in vars(module).items():
            own = isinstance(cls, type) and cls.__module__ == module.__name__ and not key.startswith("_")
            if not own or not _is_a(kind, cls) or not hasattr(cls, _attribute(kind)):  # a base has no name
                continue
            name = name_of(kind, cls)
            if name in found:
                both = f"{_location(found[name])} and {_location(cls)}"
                raise ConfigError(f"{both} share the {kind.value} name {name!r}; give one another.")
            found[name] = cls
    return found


def _entry_points(kind: Kind) -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in _offered(f"bayes_adapters.{kind.value}s", _installed()):
        if point.value not in [other.value for other in found.setdefault(point.name, [])]:
            found[point.name].append(point)
    return found


@lru_cache(maxsize=16)
def _offered(group: str, installed: tuple[tuple[str, int | None], ...]) -> tuple[EntryPoint, ...]:  # noqa: ARG001
    """Return the entry points of a group; to read those of every package takes longer than to load a guide."""
    return tuple(entry_points(group=group))


def _installed() -> tuple[tuple[str, int | None], ...]:
    """Return the places of ``sys.path`` and when each last changed, as it does where a package comes or goes."""
    found: list[tuple[str, int | None]] = []
    for place in sys.path:
        try:
            found.append((place, os.stat(place or ".").st_mtime_ns))
        except OSError:
            found.append((place, None))
    return tuple(found)


def _load(kind: Kind, point: EntryPoint) -> Any:
    package = point.dist.name if point.dist is not None else "an unknown package"
    where = f"The {kind.value} {point.name!r} of the package {package!r} ({point.value})"
    try:
        cls = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{where} cannot be imported: {error}. Reinstall or update {package}.") from error
    if not _is_a(kind, cls):
        what = "distribution or callable with a config(), nor a function" if kind is Kind.PRIOR else ""
        what = what or f"subclass of {_BASES[kind].__name__}"
        raise ConfigError(f"{where} is no {what}. Its entry point must name the class.")
    if name_of(kind, cls) != point.name:
        raise ConfigError(f"{where} calls itself {name_of(kind, cls)!r}; its entry point must have the same name.")
    return cls


def _location(cls: Any) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"
