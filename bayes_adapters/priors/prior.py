"""Priors over the random parts of an adapter, the core E above all.

A prior is given as a distribution of ``pyro.distributions`` (Independent ones too; not mixtures or masked ones, whose
class and parameters cannot be written to a file), as a dictionary from site pattern to distribution, or as
``callable(name, shape)``, which is called once. It is fixed: its parameters are neither trained nor random. The default
is ``N(0, 0.2²)`` on every entry of E, the choice of C-LoRA.

What the mean says: with a zero-mean prior the KL pulls the adapter towards *no adaptation* (E = 0); with mean I it
pulls it towards plain LoRA (E = I). At a full-weight ELBO the zero mean shrinks the update, so prefer
:func:`identity_normal`, or a KL weight below 1, when the task needs the adapter.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.distributions import LogUniform
from bayes_adapters.errors import ConfigError, near_matches

if TYPE_CHECKING:
    from bayes_adapters.sites import Site

PriorLike = (
    TorchDistributionMixin
    | Mapping[str, TorchDistributionMixin]
    | Callable[[str, tuple[int, ...]], TorchDistributionMixin]
)


def zero_normal(scale: float = 0.2) -> TorchDistributionMixin:
    """``E_ij ~ N(0, scale²)``: the prior of C-LoRA. ``scale`` is a standard deviation."""
    return dist.Normal(torch.tensor(0.0), torch.tensor(float(scale)))


def identity_normal(rank: int, scale: float = 0.2) -> TorchDistributionMixin:
    """``E ~ N(I, scale²)`` elementwise: the prior adapter is plain LoRA. ``scale`` is a standard deviation.

    >>> identity_normal(2).mean.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return dist.Normal(torch.eye(rank), torch.full((rank, rank), float(scale)))


class Prior(nn.Module):
    """The resolved prior: one distribution over a single draw for each site.

    A module, so that the distributions' tensors follow the model to its device; they are buffers, never trained.

    Args:
        spec: a distribution whose batch and event shape broadcast to the site's shape; or pattern → distribution, where
            a pattern is a site name with ``*`` wildcards and the first match wins; or ``callable(name, shape)``.
        sites: the model's sites.

    Raises:
        ConfigError: a pattern matches no site, a site has no prior, or a shape does not broadcast.
    """

    def __init__(self, spec: PriorLike, sites: Sequence[Site]) -> None:
        super().__init__()
        self._families: dict[str, tuple[str, int, dict[str, str]]] = {}
        self._whole = {site.name: len(site.event) for site in sites}
        for i, (site, prior) in enumerate(zip(sites, _resolve(spec, sites), strict=True)):
            family, parameters, event_dim = _expand(prior, site)
            names = {key: f"site{i}_{key}" for key in parameters}
            for key, value in parameters.items():
                self.register_buffer(names[key], value, persistent=False)
            self._families[site.name] = (family, len(site.event) - event_dim, names)

    def of(self, site: Site) -> TorchDistributionMixin:
        """Return the prior of one draw of ``site``: batch shape () or, for global sites, (L,); its event shape."""
        family, reinterpreted, names = self._families[site.name]
        parameters = {key: getattr(self, buffer) for key, buffer in names.items()}
        prior: TorchDistributionMixin = _family(family)(**parameters, validate_args=False).to_event(reinterpreted)
        return prior

    def require_elementwise(self, site: Site) -> None:
        """Raise :class:`ConfigError` if the prior ties a site's entries, so that a part of it is no prior by itself."""
        family, reinterpreted, _ = self._families[site.name]
        if reinterpreted != self._whole[site.name]:
            raise ConfigError(
                f"The prior {family} of {site.name!r} ties entries together, so no rank can be taken out of it. Take "
                "an elementwise prior, such as LogUniform or Normal."
            )

    def select(self, site: Site, axis: int, index: Tensor) -> None:
        """Keep only the entries ``index`` of an elementwise prior along ``axis`` of the site's shape."""
        for buffer in self._families[site.name][2].values():
            value = getattr(self, buffer)
            setattr(self, buffer, value.index_select(axis, index.to(value.device)))

    def to_json(self) -> dict[str, Any]:
        """Describe the prior of each site as family and parameters (nested lists), enough to build it again."""
        return {
            site: {
                "family": family,
                # a number stands for a constant matrix only where every entry has its own scalar parameter
                "parameters": {
                    key: _compact(getattr(self, b)) if reinterpreted == self._whole[site] else getattr(self, b).tolist()
                    for key, b in names.items()
                },
            }
            for site, (family, reinterpreted, names) in self._families.items()
        }


def from_json(spec: Mapping[str, Any]) -> dict[str, TorchDistributionMixin]:
    """Rebuild the dictionary form of a prior from :meth:`Prior.to_json`."""
    out: dict[str, TorchDistributionMixin] = {}
    for site, entry in spec.items():
        family = _family(entry["family"])
        if family is None:
            raise ConfigError(f"There is no distribution {entry['family']!r}, the prior of {site!r}.")
        out[site] = family(**{k: torch.tensor(v) for k, v in entry["parameters"].items()})
    return out


def _resolve(spec: PriorLike, sites: Sequence[Site]) -> list[TorchDistributionMixin]:
    if isinstance(spec, Mapping):
        names = [site.name for site in sites]
        for pattern in spec:
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"The prior's key {pattern!r} matches no site.{near_matches(pattern, names)} "
                    f"Sites: {', '.join(names[:6])}{' …' if len(names) > 6 else ''}."
                )
        chosen: dict[str, Any] = {}
        for name in names:
            found = [value for pattern, value in spec.items() if fnmatch.fnmatch(name, pattern)]
            if not found:
                raise ConfigError(
                    f"No key of the prior matches the site {name!r}. Add it, or the pattern '*' for all others."
                )
            chosen[name] = found[0]
    elif isinstance(spec, TorchDistributionMixin):
        chosen = {site.name: spec for site in sites}
    elif isinstance(spec, type):
        raise ConfigError(f"The prior is the class {spec.__name__}; pass an instance, such as Normal(0.0, 0.2).")
    elif callable(spec):
        with poutine.trace() as trace:
            chosen = {site.name: spec(site.name, site.shape) for site in sites}
        nodes: dict[str, Any] = trace.trace.nodes
        for node in nodes.values():
            raise ConfigError(
                f"The prior's function calls pyro.{node['type']}, and it is called once, when the model is built: a "
                "prior is fixed, there are no hierarchical ones. Let it return a distribution with constant parameters."
            )
    else:
        raise ConfigError(
            "A prior is a Pyro distribution, a dict pattern → distribution, or callable(name, shape); got "
            f"{type(spec).__module__}.{type(spec).__name__}."
        )
    for name, value in chosen.items():
        if not isinstance(value, TorchDistributionMixin):
            raise ConfigError(
                f"The prior of {name!r} is a {type(value).__module__}.{type(value).__name__}, not a Pyro distribution. "
                "Take it from pyro.distributions, for example pyro.distributions.Normal(0., 0.2)."
            )
    return list(chosen.values())


def _expand(prior: TorchDistributionMixin, site: Site) -> tuple[str, dict[str, Tensor], int]:
    """Expand a prior to its site's shape; return its family's name, its parameters and its own event dimensions."""
    base: Any = prior
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    family, event_dim = type(base).__name__, base.event_dim
    if event_dim > len(site.event) or _family(family) is None:
        raise ConfigError(
            f"The prior {family} of {site.name!r} cannot be a prior over tensors of shape {site.event}: take one of "
            "pyro.distributions."
        )
    learned = [name for name in base.arg_constraints if getattr(vars(base).get(name), "requires_grad", False)]
    if learned:
        raise ConfigError(
            f"The {learned[0]} of the prior {family} of {site.name!r} requires a gradient, and a prior is never "
            f"trained: pass {learned[0]}.detach()."
        )
    try:
        expanded = base.expand(site.shape[: len(site.shape) - event_dim])
        names = [n for n in base.arg_constraints if n in vars(expanded)] or list(base.arg_constraints)
        parameters = {n: torch.as_tensor(getattr(expanded, n)).detach().clone() for n in names}
        rebuilt = _family(family)(**parameters)
        if rebuilt.batch_shape + rebuilt.event_shape != torch.Size(site.shape):
            raise ValueError(f"its shape is {tuple(base.batch_shape + base.event_shape)}")
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(
            f"The prior {family} of {site.name!r}, of shape {tuple(base.batch_shape + base.event_shape)}, does not fit "
            f"the site's shape {site.shape}: {error}. Give a scalar distribution, or one of that shape, such as "
            "identity_normal(rank)."
        ) from error
    return family, parameters, event_dim


def _compact(value: Tensor) -> Any:
    """A nested list, or one number when all entries are equal; 1 for none, as it is in every parameter's range."""
    flat = value.flatten()
    if not len(flat):
        return 1.0
    return flat[0].item() if bool((flat == flat[0]).all()) else value.tolist()


def _family(name: str) -> Any:
    """The distribution class of this name, from Pyro or from this library; None if there is none."""
    return LogUniform if name == LogUniform.__name__ else getattr(dist, name, None)
