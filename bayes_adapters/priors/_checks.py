"""What priors refuse, and in which words."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.errors import ConfigError, near_matches

if TYPE_CHECKING:
    from bayes_adapters.sites import Site


def require_constant(tensors: Mapping[str, Tensor], prior: object, site: Site) -> None:
    """Raise :class:`ConfigError` if one of the prior's ``tensors``, by their places in it, would be trained."""
    learned = [path for path, tensor in tensors.items() if tensor.requires_grad]
    if learned:
        raise ConfigError(
            f"The {learned[0]} of the prior {type(prior).__name__} of {site.name!r} requires a gradient, and a "
            f"prior is never trained: pass {learned[0]}.detach()."
        )


def require_untied(prior: object, site: Site, untied: bool) -> None:
    """Raise :class:`ConfigError` unless the prior's entries are ``untied``."""
    if not untied:
        raise ConfigError(
            f"The prior {type(prior).__name__} of {site.name!r} ties entries together, so no rank can be taken out "
            "of it. Take an elementwise prior, such as LogUniform or Normal."
        )


def require_mapping(spec: object) -> None:
    """Raise :class:`ConfigError` unless it maps patterns to priors."""
    if not isinstance(spec, Mapping):
        raise ConfigError(
            "A prior is a Pyro distribution, a dict pattern → distribution, or callable(name, shape); got "
            f"{type(spec).__module__}.{type(spec).__name__}."
        )


def require_patterns(spec: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise :class:`ConfigError` for a pattern that matches none of the sites' names."""
    for pattern in spec:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"The prior's key {pattern!r} matches no site.{near_matches(pattern, names)} "
                f"Sites: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}."
            )


def require_found(name: str, found: Sequence[Any]) -> None:
    """Raise :class:`ConfigError` if no prior was found for the site ``name``."""
    if not found:
        raise ConfigError(f"No key of the prior matches the site {name!r}. Add it, or the pattern '*' for all others.")


def require_instance(spec: object) -> None:
    """Raise :class:`ConfigError` for a class of priors."""
    if isinstance(spec, type):
        raise ConfigError(f"The prior is the class {spec.__name__}; pass an instance, such as Normal(0.0, 0.2).")


def require_no_others(nodes: Mapping[str, Any], site: Site) -> None:
    """Raise :class:`ConfigError` for a statement of Pyro, in a function that returns a prior, that samples nothing."""
    for node in nodes.values():
        raise ConfigError(
            f"The prior's function of {site.name!r} calls pyro.{node['type']}. A prior may sample hyper-parameters "
            "with pyro.sample; it is never trained, observed or in a plate. Let it return a distribution, for several "
            "hyper-parameters under one name with .to_event()."
        )


def require_one_event(name: str, fn: Any, site: Site) -> None:
    """Raise :class:`ConfigError` if the hyper-parameter ``name`` has a batch shape."""
    if fn.batch_shape:
        raise ConfigError(
            f"The hyper-parameter {name!r} of the prior of {site.name!r} has batch shape {tuple(fn.batch_shape)}. "
            "Several hyper-parameters under one name are one event: end the distribution with .to_event()."
        )


def no_bijection(name: str, fn: Any, site: Site) -> ConfigError:
    """The hyper-parameter ``name`` cannot be inferred on the unconstrained space."""
    return ConfigError(
        f"The hyper-parameter {name!r} of the prior of {site.name!r} is discrete, or torch knows no bijection onto "
        f"the support of {type(fn).__name__}. Take a continuous one, such as HalfCauchy or Gamma."
    )


def require_distribution(prior: object, site: Site) -> None:
    """Raise :class:`ConfigError` unless it is a distribution of Pyro."""
    if not isinstance(prior, TorchDistributionMixin):
        raise ConfigError(
            f"The prior of {site.name!r} is a {type(prior).__module__}.{type(prior).__name__}, not a Pyro "
            "distribution. Take it from pyro.distributions, for example pyro.distributions.Normal(0., 0.2)."
        )


def misfit(prior: object, shape: tuple[int, ...], site: Site, error: Exception) -> ConfigError:
    """A prior of this shape cannot be expanded to the site's."""
    return ConfigError(
        f"The prior {type(prior).__name__} of {site.name!r}, of shape {shape}, does not fit the site's shape "
        f"{site.shape}: {error}. Give a scalar distribution, or one of that shape, such as identity_normal(rank)."
    )


def unwritable(site: str, error: Exception) -> ConfigError:
    """No file can hold this site's prior."""
    return ConfigError(
        f"The prior of {site!r} cannot be written to a file: {error}. Give the class (a distribution, or a "
        "callable) a `name` and a `config()` that returns its options as JSON, and register it with "
        "bayes_adapters.registry.register, or by an entry point of the group bayes_adapters.priors; a plain "
        "function is registered under its own name. Everything but save() works without."
    )


def require_depth(lengthscale: float, scale: float, spread: float | None) -> None:
    """Raise :class:`ConfigError` for options that give no process over depth."""
    given = {"lengthscale": lengthscale, "scale": scale} | ({} if spread is None else {"spread": spread})
    for name, value in given.items():
        lowest = "at least 0" if name == "lengthscale" else "positive"
        if not (value >= 0.0 if name == "lengthscale" else value > 0.0) or value == math.inf:
            raise ConfigError(f"{name} must be {lowest} and finite; got {value}.")
    if spread is not None and lengthscale == 0:
        raise ConfigError("lengthscale=0 is no start for a length scale that is learned: log 0 has no value. Give 1.0.")


def require_layers(site: Site) -> None:
    """Raise :class:`ConfigError` unless one global site holds the layers that a prior is to join."""
    if site.shape == site.event:
        raise ConfigError(
            f"A prior over depth joins the weights of layers, and {site.name!r} is drawn anew for each "
            f"{site.granularity.value}. Take granularity='global', or another prior."
        )
    if site.name == f"{site.part.name}.{site.layers[0]}":
        raise ConfigError(
            f"A prior over depth joins the layers of one site, and {site.name!r} holds one layer. Leave grouped=False "
            "out of the model."
        )


def require_local(site: Site) -> None:
    """Raise :class:`ConfigError` for a weight, which needs no other weight above it."""
    if site.shape != site.event:
        raise ConfigError(
            f"GlobalWeights puts a weight of the data set under latents of examples or tokens, and {site.name!r} is a "
            "weight of the data set itself. Take granularity='token' or 'sequence', or the prior Normal; where this is "
            "one site of several, name them: prior={'core.*': GlobalWeights(), '*': Normal(0.0, 1.0)}."
        )


def require_square(site: Site) -> None:
    """Raise :class:`ConfigError` unless the site's weights are square matrices."""
    if len(site.event) != 2 or site.event[0] != site.event[1]:
        raise ConfigError(f"identity=True needs square weights; {site.name!r} has shape {site.event} per layer.")
