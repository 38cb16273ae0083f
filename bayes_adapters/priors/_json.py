"""Priors as JSON: a family and its parameters, as deep as they are nested, or a registered name and its options."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution, Transform, transforms

from bayes_adapters.distributions import LogUniform
from bayes_adapters.errors import ConfigError
from bayes_adapters.priors._checks import unwritable
from bayes_adapters.priors._tensors import tensors_of

Find = Callable[[str, str], Any]
"""(kind, name) → what is registered under the name, as :func:`bayes_adapters.registry.find`."""


class _UnwritableError(Exception):
    """A part of a prior has no name under which a file could mention it."""


def describe(prior: Any, site: str, *, elementwise: bool, find: Find | None) -> dict[str, Any]:
    """Return ``prior`` as JSON.

    Args:
        prior: a distribution over the whole site, or a callable that makes one.
        site: its name.
        elementwise: whether each entry has its own scalar parameters: a number then stands for a constant tensor.
        find: looks up registered priors. None describes what cannot be written by its class and a checksum instead of
            refusing it; such a description tells priors apart and cannot be read back.

    Raises:
        ConfigError: ``find`` is given, and a part of the prior is neither a distribution or transform of
            ``pyro.distributions`` with tensors and numbers for parameters, nor registered.
    """
    try:
        return _described(prior, _compact if elementwise else _list, find)
    except _UnwritableError as error:
        if find is None:
            return _checksum(prior)
        raise unwritable(site, error) from None


def read(entry: Mapping[str, Any], site: str, find: Find | None) -> Any:
    """Build the prior that :func:`describe` wrote.

    Raises:
        ConfigError: there is no such family, or its parameters do not fit.
    """
    if entry.get("registered"):
        if find is None:
            raise ConfigError(f"The prior {entry['family']!r} of {site!r} is registered; pass find=registry.find.")
        found = find("prior", entry["family"])
        return found(**entry["parameters"]) if isinstance(found, type) else found
    return _family(entry["family"], site)(**{k: _value(v, site, find) for k, v in entry["parameters"].items()})


def _registered(prior: Any, find: Find | None) -> dict[str, Any] | None:
    """The name and options of a registered prior; None if ``prior`` is a distribution that says no name."""
    thing = prior
    while isinstance(thing, dist.ExpandedDistribution):  # reading expands again
        thing = thing.base_dist
    of_class = not isinstance(thing, Distribution) and not hasattr(type(thing), "config")
    name = getattr(thing, "__name__", None) if of_class else vars(type(thing)).get("name")
    if not isinstance(name, str):
        if isinstance(thing, Distribution):
            return None
        raise _UnwritableError(f"it is made by a {type(thing).__name__} without a name")
    if find is not None:
        try:
            found = find("prior", name)
        except ConfigError as error:
            raise _UnwritableError(f"{name!r} is not registered ({error})") from None
        if found is not (thing if of_class else type(thing)):
            raise _UnwritableError(f"the registered {name!r} is another one")
    return {"family": name, "registered": True, "parameters": {} if of_class else thing.config()}


def _described(prior: Any, value: Callable[[Tensor], Any], find: Find | None) -> dict[str, Any]:
    registered = _registered(prior, find)
    if registered is not None:
        return registered
    return {"family": _name(prior), "parameters": {k: _encode(v, value, find) for k, v in _parameters(prior).items()}}


def _encode(part: Any, value: Callable[[Tensor], Any], find: Find | None) -> Any:
    if isinstance(part, Tensor):
        return value(part)
    if isinstance(part, Distribution):
        return _described(part, _list, find)
    if isinstance(part, Transform):
        return {
            "transform": _name(part),
            "parameters": {k: _encode(v, _list, find) for k, v in _parameters(part).items()},
        }
    if isinstance(part, list | tuple):
        return {"list": [_encode(one, value, find) for one in part]}
    if isinstance(part, bool | int | float):
        return {"number": part}
    raise _UnwritableError(f"a part of it is a {type(part).__name__}")


def _name(part: Any) -> str:
    name = type(part).__name__
    known = (getattr(place, name, None) for place in (dist, torch.distributions, transforms))
    if type(part) is LogUniform or type(part) in known:
        return name
    raise _UnwritableError(f"{type(part).__module__}.{name} is no class of pyro.distributions, and not registered")


def _parameters(part: Any) -> dict[str, Any]:
    """What the class's constructor takes to make ``part`` again."""
    held = vars(part)
    if isinstance(part, dist.MixtureSameFamily):
        return {
            "mixture_distribution": part.mixture_distribution,
            "component_distribution": part.component_distribution,
        }
    if isinstance(part, dist.MaskedDistribution):
        return {"base_dist": part.base_dist, "mask": part._mask}
    if isinstance(part, dist.ExpandedDistribution):
        return {"base_dist": part.base_dist, "batch_shape": list(part.batch_shape)}
    if isinstance(part, torch.distributions.Independent):
        return {"base_distribution": part.base_dist, "reinterpreted_batch_ndims": part.reinterpreted_batch_ndims}
    if type(part).__name__ == "TransformedDistribution":
        return {"base_distribution": part.base_dist, "transforms": part.transforms}
    if isinstance(part, Distribution) and part.arg_constraints:
        names = [n for n in part.arg_constraints if n in held] or list(part.arg_constraints)
        given = [n for n in names if "_param" in held and held[n] is held["_param"]]  # of probs and logits
        return {name: torch.as_tensor(getattr(part, name)) for name in given or names}
    if isinstance(part, Transform):
        return {n: held[n] for n in signature(type(part).__init__).parameters if n in held and n != "cache_size"}
    raise _UnwritableError(f"{type(part).__name__} does not say its parameters")


def _value(entry: Any, site: str, find: Find | None) -> Any:
    if not isinstance(entry, Mapping):
        return torch.tensor(entry)
    if "family" in entry:
        return read(entry, site, find)
    if "transform" in entry:
        kind = getattr(transforms, entry["transform"], None)
        if not (isinstance(kind, type) and issubclass(kind, Transform)):
            raise ConfigError(f"There is no transform {entry['transform']!r}, in the prior of {site!r}.")
        return kind(**{k: _value(v, site, find) for k, v in entry["parameters"].items()})
    if "list" in entry:
        return [_value(one, site, find) for one in entry["list"]]
    return entry["number"]


def _family(name: str, site: str) -> Any:
    """The distribution class of this name, from Pyro or from this library, and nothing else that Pyro holds there."""
    family = LogUniform if name == LogUniform.__name__ else getattr(dist, name, None)
    if isinstance(family, type) and issubclass(family, Distribution):
        return family
    raise ConfigError(f"There is no distribution {name!r}, the prior of {site!r}.")


def _compact(value: Tensor) -> Any:
    """A nested list, or one number when all entries are equal; 1 for none, as it is in every parameter's range."""
    flat = value.flatten()
    if not len(flat):
        return 1.0
    return flat[0].item() if bool((flat == flat[0]).all()) else value.tolist()


def _list(value: Tensor) -> Any:
    return value.tolist()


def _checksum(prior: Any) -> dict[str, Any]:
    digest = hashlib.sha256()
    tensors = tensors_of(prior) if isinstance(prior, Distribution) else {}
    for path, value in tensors.items():
        digest.update(f"{path} {value.dtype} {tuple(value.shape)}\0".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    kind = prior if hasattr(prior, "__qualname__") else type(prior)
    return {"family": f"{kind.__module__}.{kind.__qualname__}", "parameters": {"sha256": digest.hexdigest()}}
