"""Priors over the random parts of an adapter, the core E above all.

A prior is any Pyro distribution, kept as it is (a mixture, a transformed or masked one, an own subclass); a dictionary
from site pattern to prior; or ``callable(name, shape)`` that returns one, ``callable(site)`` where the callable's
``takes_site`` is true. Its parameters are never trained. They may be
random: a callable that samples hyper-parameters with ``pyro.sample`` is called in every pass of the model, see
:mod:`bayes_adapters.priors.hierarchical`; any other is called once. The default is ``N(0, 0.2²)`` on every entry of E,
the choice of C-LoRA. ``save`` writes the classes of ``pyro.distributions``, however nested, and what is registered as a
prior (:mod:`bayes_adapters.registry`); everything else works with any prior.

What the mean says: with a zero-mean prior the KL pulls the adapter towards *no adaptation* (E = 0); with mean I it
pulls it towards plain LoRA (E = I). At a full-weight ELBO the zero mean shrinks the update, so prefer
:func:`identity_normal`, or a KL weight below 1, when the task needs the adapter.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.priors import _json
from bayes_adapters.priors._checks import (
    require_constant,
    require_found,
    require_instance,
    require_mapping,
    require_patterns,
    require_untied,
)
from bayes_adapters.priors._shapes import fitted, fresh, single
from bayes_adapters.priors._tensors import distributions_of, tensors_of, with_tensors
from bayes_adapters.priors.hierarchical import HyperSite, PriorFunction, at_start, called, sample_priors

if TYPE_CHECKING:
    from bayes_adapters.sites import Site

SINGLE_PRIOR = "single_prior"
"""The key, in a sample statement's ``infer`` dictionary, of the prior of one draw of its site in this pass."""

PriorLike = TorchDistributionMixin | PriorFunction | Mapping[str, TorchDistributionMixin | PriorFunction]


def zero_normal(scale: float = 0.2) -> TorchDistributionMixin:
    """``E_ij ~ N(0, scale²)``: the prior of C-LoRA. ``scale`` is a standard deviation."""
    return dist.Normal(torch.tensor(0.0), torch.tensor(float(scale)))


def identity_normal(rank: int, scale: float = 0.2) -> TorchDistributionMixin:
    """``E ~ N(I, scale²)`` elementwise: the prior adapter is plain LoRA. ``scale`` is a standard deviation.

    >>> identity_normal(2).mean.tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return dist.Normal(torch.eye(rank), torch.full((rank, rank), float(scale)))


@dataclass(frozen=True)
class _Held:
    """One site's prior: the buffers that hold its tensors, and it itself, as it was given and for use."""

    buffers: list[str]
    pristine: Any
    used: Any


class Prior(nn.Module):
    """The resolved prior: one distribution over a single draw for each site.

    A module, so that the distributions' tensors follow the model to its device; they are buffers, never trained.

    Args:
        spec: a distribution whose batch and event shape broadcast to the site's shape; or ``callable(name, shape)``; or
            pattern → one of these, where a pattern is a site name with ``*`` wildcards and the first match wins.
        sites: the model's sites.

    Raises:
        ConfigError: a pattern matches no site, a site has no prior, a shape does not broadcast, or a parameter requires
            a gradient.

    >>> from bayes_adapters.sites import Granularity, Part, Site
    >>> site = Site("core.q", Part.CORE, ("q",), (2, 2), Granularity.TOKEN)
    >>> scales = dist.Normal(torch.zeros(2), torch.tensor([0.1, 1.0]))
    >>> Prior(dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), scales), [site]).of(site).event_shape
    torch.Size([2, 2])
    """

    def __init__(self, spec: PriorLike, sites: Sequence[Site]) -> None:
        super().__init__()
        self.hyper_sites: list[HyperSite] = []
        """Hyper-parameters, in the order in which a pass samples them."""
        self._held: dict[str, _Held] = {}
        self._functions: dict[str, tuple[PriorFunction, Site]] = {}
        self._written: dict[str, PriorFunction] = {}
        for place, (site, given) in enumerate(zip(sites, _resolve(spec, sites), strict=True)):
            if not isinstance(given, TorchDistributionMixin) and callable(given):
                function = given
                known = {hyper.name: hyper for hyper in self.hyper_sites}
                given, hypers = at_start(function, site, known)
                if getattr(function, "takes_site", False):
                    self._written[site.name] = function
                if hypers:
                    self._functions[site.name] = (function, site)
                    self.hyper_sites += [hyper for hyper in hypers if hyper.name not in known]
            self._hold(site, f"site{place}_", fitted(given, site))

    def _hold(self, site: Site, prefix: str, whole: TorchDistributionMixin) -> None:
        """Keep a copy of ``whole`` whose tensors are buffers of this module."""
        tensors = tensors_of(whole)
        require_constant(tensors, whole, site)
        copies = {id(tensor): tensor.detach().clone() for tensor in tensors.values()}
        held = with_tensors(whole, copies)
        for part in distributions_of(held):
            part._validate_args = False  # torch would look at every entry in every call
        buffers = [prefix + path.replace(".", "_") for path in tensors]
        for buffer, tensor in zip(buffers, tensors.values(), strict=True):
            self.register_buffer(buffer, copies[id(tensor)], persistent=False)
        self._held[site.name] = _Held(buffers, held, held)
        self._renew(site.name, held)

    def _renew(self, name: str, pristine: Any) -> None:
        """Keep ``pristine``, and a copy on the same tensors for use: torch caches more tensors in what is used."""
        copied = with_tensors(pristine, {id(tensor): tensor for tensor in tensors_of(pristine).values()})
        self._held[name] = _Held(self._held[name].buffers, pristine, copied)

    def _whole(self, name: str) -> Any:
        """The distribution over the whole site, on whatever device and in whatever dtype the buffers are now."""
        held = self._held[name]
        now = [getattr(self, buffer) for buffer in held.buffers]
        before = tensors_of(held.pristine).values()
        if any(a is not b for a, b in zip(before, now, strict=True)):
            self._renew(name, with_tensors(held.pristine, {id(a): b for a, b in zip(before, now, strict=True)}))
        return self._held[name].used

    def of(self, site: Site) -> TorchDistributionMixin:
        """Return the prior of one draw of ``site``: batch shape () or, for global sites, (L,); its event shape.

        A site whose prior has hyper-parameters gets the prior given their starting values, see :class:`HyperSite`.
        """
        return single(self._whole(site.name), site)

    def sampled(self, outer: tuple[int, ...], device: torch.device) -> Prior | SampledPrior:
        """Sample the hyper-parameters, as statements of the model that runs, and return the prior given them.

        Args:
            outer: sizes of the sample plates around the model.
            device: where the model is; what the callables make is made there.
        """
        if not self._functions:
            return self
        calls = {name: partial(_call, *pair, device, bool(outer)) for name, pair in self._functions.items()}
        return SampledPrior(self, sample_priors(calls, outer))

    def require_elementwise(self, site: Site) -> None:
        """Raise :class:`ConfigError` unless each entry of a site has a prior of its own, with parameters of its own."""
        self._whole(site.name)
        whole = self._held[site.name].pristine
        shapes = {tuple(tensor.shape) for tensor in tensors_of(whole).values()}
        constant = site.name not in self._functions
        require_untied(whole, site, constant and whole.event_dim == 0 and shapes == {site.shape})

    def select(self, site: Site, axis: int, index: Tensor) -> None:
        """Keep only the entries ``index`` of an elementwise prior along ``axis`` of the site's shape."""
        self._whole(site.name)
        buffers, whole = self._held[site.name].buffers, self._held[site.name].pristine
        kept = {id(t): t.index_select(axis, index.to(t.device)) for t in tensors_of(whole).values()}
        left = with_tensors(whole, kept)
        for part in distributions_of(left):
            part._batch_shape = next(iter(kept.values())).shape
        for buffer, tensor in zip(buffers, kept.values(), strict=True):
            setattr(self, buffer, tensor)
        self._renew(site.name, left)

    def to_json(self, find: _json.Find | None = None) -> dict[str, Any]:
        """Describe the prior of each site as family and parameters (nested lists), enough to build it again.

        Args:
            find: :func:`bayes_adapters.registry.find`, to name what is registered. Without it the description tells
                priors apart, and holds a checksum where something cannot be written.

        Raises:
            ConfigError: ``find`` is given and a prior cannot be written.
        """
        described = {}
        for name in self._held:
            self._whole(name)
            whole = self._held[name].pristine
            given = self._functions[name][0] if name in self._functions else self._written.get(name, whole)
            described[name] = _json.describe(given, name, elementwise=whole.event_dim == 0, find=find)
        return described


class SampledPrior:
    """The priors of one pass, given the values of their hyper-parameters.

    Args:
        prior: the model's.
        given: site name → prior given the hyper-parameters, for those sites that have any.
    """

    def __init__(self, prior: Prior, given: Mapping[str, Any]) -> None:
        self.prior, self.given = prior, given

    def of(self, site: Site) -> TorchDistributionMixin:
        """Return the prior of one draw of ``site``, its batch shape led by the sizes of the sample plates, if any."""
        return fresh(self.given[site.name]) if site.name in self.given else self.prior.of(site)


def _call(function: PriorFunction, site: Site, device: torch.device, stacked: bool) -> TorchDistributionMixin:
    """The prior of one draw of ``site``, ready to be stacked: with the data plate's dimension, of size 1."""
    with torch.device(device):
        prior = single(fitted(called(function, site), site), site)
    if not stacked:
        return prior
    if prior.event_dim > len(site.event):  # it joins the layers
        return prior.expand(torch.Size((1,)))
    return prior.expand(torch.Size((1, *prior.batch_shape)) if prior.batch_shape else torch.Size((1, 1)))


def from_json(spec: Mapping[str, Any], find: _json.Find | None = None) -> dict[str, Any]:
    """Rebuild the dictionary form of a prior from :meth:`Prior.to_json`; ``find`` looks up registered priors."""
    return {site: _json.read(entry, site, find) for site, entry in spec.items()}


def _resolve(spec: Any, sites: Sequence[Site]) -> list[Any]:
    """The distribution or callable of each site."""
    require_instance(spec)
    if isinstance(spec, TorchDistributionMixin) or (callable(spec) and not isinstance(spec, Mapping)):
        return [spec] * len(sites)
    require_mapping(spec)
    names = [site.name for site in sites]
    require_patterns(spec, names)
    chosen = []
    for name in names:
        found = [value for pattern, value in spec.items() if fnmatch.fnmatch(name, pattern)]
        require_found(name, found)
        chosen.append(found[0])
    return chosen
