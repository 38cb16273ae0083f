"""The tensors inside a distribution: found, and replaced by others, so that any distribution follows its module."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints

_D = TypeVar("_D")
_PARTS = (Distribution, Transform, constraints.Constraint, nn.Module)


def tensors_of(distribution: Any) -> dict[str, Tensor]:
    """Return path → tensor for every tensor that ``distribution`` holds, at any depth; each tensor once.

    Looked through are distributions, transforms, constraints, modules, and lists, tuples and dictionaries of them: a
    mixture's components, what a transformed distribution transforms, a mask.

    >>> from pyro.distributions import Normal
    >>> sorted(tensors_of(Normal(0.0, 1.0).to_event(0).mask(False)))
    ['loc', 'scale']
    """
    return dict(_walk(distribution, "", set()))


def with_tensors(distribution: _D, replaced: Mapping[int, Tensor]) -> _D:
    """Return a deep copy of ``distribution`` in which each tensor is the one that stands under its ``id``."""
    return copy.deepcopy(distribution, dict(replaced))


def distributions_of(distribution: Any) -> Iterator[Distribution]:
    """Yield ``distribution`` and every distribution inside it."""
    return (part for part in _parts(distribution, set()) if isinstance(part, Distribution))


def _walk(thing: Any, path: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if id(thing) in seen:
        return
    if isinstance(thing, Tensor):
        seen.add(id(thing))
        yield path, thing
        return
    for name, value in _children(thing, seen):
        # wrappers (Independent, masks, expansions) and a module's dictionaries do not lengthen a path
        here = path if name in ("base_dist", "_parameters", "_buffers", "_modules") else f"{path}.{name}".lstrip(".")
        yield from _walk(value, here, seen)


def _parts(thing: Any, seen: set[int]) -> Iterator[Any]:
    if id(thing) in seen or isinstance(thing, Tensor):
        return
    yield thing
    for _, value in _children(thing, seen):
        yield from _parts(value, seen)


def _children(thing: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, _PARTS):
        seen.add(id(thing))
        yield from list(vars(thing).items())
    elif isinstance(thing, Mapping):
        seen.add(id(thing))
        yield from [(str(name), value) for name, value in thing.items()]
    elif isinstance(thing, Sequence) and not isinstance(thing, str | bytes):
        seen.add(id(thing))
        yield from [(str(place), value) for place, value in enumerate(thing)]
