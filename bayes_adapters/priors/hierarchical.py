"""Priors with parameters of their own that are random: ``E ~ p(E | τ)``, ``τ ~ p(τ)``.

Density of a model whose prior is such a callable: ``p(τ) Π_sites p(E_site | τ)``. The hyper-parameters τ are global
latents: they count once per data set, as weights do, and are sample sites of the model under the names that the
callable gives them. A name that the callable samples for several sites is one hyper-parameter that they share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.distributions.torch_distribution import TorchDistribution, TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Distribution, biject_to, constraints, kl_divergence, transforms
from torch.distributions.kl import register_kl

from bayes_adapters.priors._checks import no_bijection, require_no_others, require_one_event
from bayes_adapters.priors._shapes import fresh

if TYPE_CHECKING:
    from bayes_adapters.sites import Site

HYPER = "hyper_site"
"""The key of the :class:`HyperSite` in a hyper-parameter's ``infer`` dictionary."""

PriorFunction = Callable[[str, tuple[int, ...]], TorchDistributionMixin]


@dataclass(frozen=True)
class HyperSite:
    """A hyper-parameter of a prior, τ.

    Args:
        name: its sample site's name.
        support: the constraint that its values satisfy.
        start: shape = the site's event shape: the image of 0 under :func:`bijection`, where a guide
            starts: 1 for a positive number.
    """

    name: str
    support: constraints.Constraint
    start: Tensor


def bijection(support: constraints.Constraint) -> Any:
    """Return the map from all reals onto ``support``: torch's ``biject_to``, and exp itself for positive numbers.

    Raises:
        NotImplementedError: torch knows none.
    """
    onto: Any = biject_to(support)
    if isinstance(onto, transforms.ComposeTransform) and isinstance(support, constraints.greater_than):
        exp, shift = onto.parts[0], onto.parts[-1]
        if isinstance(shift, transforms.AffineTransform) and not bool(torch.as_tensor(shift.loc).any()):
            return exp  # torch knows the KL of two log-normals, and not that exp(x) + 0 is one
    return onto


class Stacked(TorchDistribution):
    """One distribution for each draw of hyper-parameters: ``log p(v)[s] = log p_s(v[s])``.

    Args:
        components: n distributions of one batch shape and one event shape, in the order of the draws.
        outer: sizes whose product is n; the batch shape is (*outer, *batch shape of a component).

    >>> from pyro.distributions import Normal
    >>> both = Stacked([Normal(0.0, 1.0), Normal(0.0, 2.0)], (2,))
    >>> both.log_prob(torch.zeros(2)).diff()
    tensor([-0.6931])
    """

    arg_constraints = {}

    def __init__(self, components: list[Any], outer: tuple[int, ...]) -> None:
        self.components, self.outer = components, torch.Size(outer)
        first = components[0]
        super().__init__(self.outer + first.batch_shape, first.event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        """That of every component."""
        return self.components[0].support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether every component's draws are reparametrised."""
        return all(c.has_rsample for c in self.components)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Stacked:
        """Return the same with another batch shape, whose first sizes are still ``outer``."""
        shape, k = torch.Size(batch_shape), len(self.outer)
        if shape[:k] != self.outer:
            raise ValueError(f"a prior of {tuple(self.outer)} draws of hyper-parameters has no batch {tuple(shape)}")
        return Stacked([fresh(c).expand(shape[k:]) for c in self.components], tuple(self.outer))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density, shape = batch shape."""
        each = self._split(value)
        return self._join([c.log_prob(v) for c, v in zip(self.components, each, strict=True)], 0)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw from every component."""
        return self._join([c.sample(torch.Size(sample_shape)) for c in self.components], len(sample_shape))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw from every component, with gradients for its parameters."""
        return self._join([c.rsample(torch.Size(sample_shape)) for c in self.components], len(sample_shape))

    @property
    def mean(self) -> Tensor:
        """Every component's mean."""
        return self._join([c.mean for c in self.components], 0)

    @property
    def variance(self) -> Tensor:
        """Every component's variance."""
        return self._join([c.variance for c in self.components], 0)

    def _split(self, value: Tensor) -> tuple[Tensor, ...]:
        value = value.expand(self.batch_shape + self.event_shape)
        return value.reshape(len(self.components), *value.shape[len(self.outer) :]).unbind(0)

    def _join(self, values: list[Tensor], place: int) -> Tensor:
        whole = torch.stack(values, place)
        return whole.reshape(whole.shape[:place] + self.outer + whole.shape[place + 1 :])


@register_kl(Distribution, Stacked)  # type: ignore[untyped-decorator]
def _kl_stacked(q: Distribution, p: Stacked) -> Tensor:
    """``KL(q_s ‖ p_s)`` for every draw s; each is taken from the KL of all q with p_s, as q has no parts to take."""
    n, k = len(p.components), len(p.outer)
    shape = p.batch_shape
    each = [kl_divergence(q, c).expand(shape).reshape(n, *shape[k:])[s] for s, c in enumerate(p.components)]
    return torch.stack(each).reshape(shape)


@register_kl(Delta, Stacked)  # type: ignore[untyped-decorator]
def _kl_delta_stacked(q: Any, p: Stacked) -> Tensor:
    return -p.log_prob(q.v)


class _Hyper(Messenger):
    """Mark the hyper-parameters that a prior's callable samples, and sample each name once.

    Args:
        values: name → value of what has been sampled in this pass; those are given back, and nobody else sees it.
        pause: stop at the first name that is not in ``values``, by raising :class:`_PauseSignal`.
    """

    def __init__(self, values: dict[str, Tensor], *, pause: bool = False) -> None:
        super().__init__()
        self.values, self.pause = values, pause
        self.used: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        name = msg["name"]
        if name not in self.used:
            self.used.append(name)
        if name in self.values:
            msg["value"], msg["done"], msg["stop"] = self.values[name], True, True
        elif self.pause:
            msg["stop"] = True
            raise _PauseSignal(name, msg["fn"])
        else:
            msg["infer"][HYPER] = name

    def _pyro_post_sample(self, msg: Any) -> None:
        self.values.setdefault(msg["name"], msg["value"])


class _PauseSignal(Exception):  # noqa: N818
    """A callable has come to a hyper-parameter without a value."""

    def __init__(self, name: str, fn: Any) -> None:
        super().__init__(name)
        self.name, self.fn = name, fn


def called(function: Any, site: Site) -> Any:
    """Call a prior's function as it asks to be: with the site, or with its name and shape."""
    return function(site) if getattr(function, "takes_site", False) else function(site.name, site.shape)


def at_start(function: PriorFunction, site: Site, known: Mapping[str, HyperSite]) -> tuple[Any, list[HyperSite]]:
    """Call ``function`` for ``site`` with every hyper-parameter at its start.

    Args:
        function: the prior's callable.
        site: the site.
        known: name → hyper-parameter that another site has had already.

    Returns:
        What it returns, and the hyper-parameters that it samples; none if it returns a fixed prior.

    Raises:
        ConfigError: it has a parameter to train, observes something, or samples a hyper-parameter that is discrete or
            has batch dimensions.
    """
    found = dict(known)
    with poutine.block(), torch.random.fork_rng(devices=[]):
        while True:
            handler = _Hyper({name: hyper.start for name, hyper in found.items()}, pause=True)
            try:
                with poutine.trace() as trace, handler:
                    prior = called(function, site)
                break
            except _PauseSignal as pause:
                found[pause.name] = _hyper_site(pause.name, pause.fn, site)
    nodes: dict[str, Any] = trace.trace.nodes
    require_no_others(nodes, site)
    return prior, [found[name] for name in handler.used]


def _hyper_site(name: str, fn: Any, site: Site) -> HyperSite:
    require_one_event(name, fn, site)
    try:
        onto = bijection(fn.support)
        start = onto(torch.zeros(onto.inverse_shape(fn.event_shape)))
    except NotImplementedError:
        raise no_bijection(name, fn, site) from None
    return HyperSite(name, fn.support, start)


def sample_priors(functions: Mapping[str, Callable[[], Any]], outer: tuple[int, ...]) -> dict[str, Any]:
    """Sample the hyper-parameters as statements of the running model, and return the priors given them.

    Args:
        functions: site name → what calls the prior's function and brings the result to the site's shape, for a local
            site with batch shape (1,), for a global one (1, L).
        outer: sizes of the sample plates around the model.

    Returns:
        Site name → prior given the hyper-parameters, with batch shape (*outer, *batch shape of one).
    """
    count = math.prod(outer)
    draws: list[dict[str, Tensor]] = [{} for _ in range(count)]
    if not outer:
        with _Hyper(draws[0]):
            return {name: function() for name, function in functions.items()}
    priors: dict[str, Any] = {}
    for name, function in functions.items():
        while name not in priors:
            results, missing = _called(draws, function)
            if not missing:
                priors[name] = Stacked(results, outer)
                continue
            hyper = missing[0].name
            fn = Stacked([one.fn.expand((1,)) for one in missing], outer)  # 1 is the data plate's size
            infer: Any = {HYPER: hyper}
            value = pyro.sample(hyper, fn, infer=infer)
            for draw, one in zip(draws, value.reshape(count, *fn.event_shape), strict=True):
                draw[hyper] = one
    return priors


def _called(draws: list[dict[str, Tensor]], function: Callable[[], Any]) -> tuple[list[Any], list[_PauseSignal]]:
    """Call ``function`` once for each draw of hyper-parameters, as far as their values are known."""
    results: list[Any] = []
    missing: list[_PauseSignal] = []
    for draw in draws:
        try:
            with poutine.block(), _Hyper(draw, pause=True):
                results.append(function())
        except _PauseSignal as pause:
            missing.append(pause)
    return results, missing
