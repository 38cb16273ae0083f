"""Draws of all weights of a posterior, by their numbers: those that ``predict`` makes; and its mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from jaxtyping import Float, Int
from pyro.poutine.messenger import Messenger
from torch import Tensor

from bayes_adapters.distributions import projected
from bayes_adapters.inference._draw_checks import require_drawn, require_global
from bayes_adapters.inference._linearised_checks import require_gaussian
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KeyedDraws, PosteriorMean
from bayes_adapters.inference.joint import JOINT
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.inference.tempering import Tempering, temperature_of
from bayes_adapters.priors import SINGLE_PRIOR
from bayes_adapters.sites import SITE, SiteCall


@exclusive()
@torch.no_grad()
def weight_draw(model: AdapterModel, guide: AdapterGuide, number: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Return site → value, shape ``site.shape``, of draw ``number`` of ``predict(model, guide, …, seed=seed)``.

    The same bits: a global draw is a function of (seed, site, number, entry), whatever the batch. No pass is run.

    Args:
        model: all of its sites are global: one draw for the whole data set.
        guide: made for it; its ``posterior_temperature`` counts.
        number: s, from 0.
        seed: any integer.

    Raises:
        ConfigError: a site has a draw for each example or token, or is integrated out; the posterior has no inverse
            CDF.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import MeanField
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> {name: tuple(value.shape) for name, value in weight_draw(model, MeanField(model), 3).items()}
    {'A.global': (2, 2, 8)}
    """
    numbers = torch.tensor([number], device=next(model.parameters()).device)
    return {name: value[0] for name, value in weight_draws(model, guide, numbers, seed=seed).items()}


@exclusive()
@torch.no_grad()
def weight_draws(
    model: AdapterModel,
    guide: AdapterGuide,
    numbers: Int[Tensor, " S"],
    *,
    seed: int = 0,
    temperature: float | None = None,
) -> dict[str, Tensor]:
    """Return site → values, shape (S, *site.shape), of the draws ``numbers``: see :func:`weight_draw`.

    ``temperature`` is τ as in :func:`bayes_adapters.predict`.
    """
    tau = temperature_of(guide, temperature)
    keyed = KeyedDraws(seed, numbers, torch.zeros_like(numbers[:1]))
    return _sampled(model, guide, [*([] if tau == 1.0 else [Tempering(tau)]), keyed], len(numbers))


@exclusive()
@torch.no_grad()
def weight_mean(model: AdapterModel, guide: AdapterGuide) -> dict[str, Tensor]:
    """Return site → E_q of its value, shape ``site.shape``, whatever the batch.

    Args:
        model: all of its sites are global.
        guide: made for it.

    Raises:
        ConfigError: a site has a draw for each example or token, or is integrated out; a mean is not known.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> guide = Delta(model)
    >>> torch.equal(weight_mean(model, guide)["A.global"], guide.loc["A-global"])
    True
    """
    return {name: value[0] for name, value in _sampled(model, guide, [PosteriorMean()], 1).items()}


Projection = Callable[[Float[Tensor, "*S D"]], Float[Tensor, "*S P"]]
"""Rows v → rows ``Rᵀ v``, where w = m + R ε: ``Cov(v·w, v'·w)`` is the product of two of them."""


@exclusive()
@torch.no_grad()
def weight_gaussian(model: AdapterModel, guide: AdapterGuide) -> tuple[dict[str, Tensor], Projection]:
    """Return E_q of every weight, as :func:`weight_mean`, and the covariance of all weights, as it acts on rows.

    Rows stand over the D entries of all weights, in the order of ``model.latent_sites``; D² numbers are never made.

    Args:
        model: all of its sites are global.
        guide: made for it, its posterior Gaussian over all weights.

    Raises:
        ConfigError: a site has a draw for each example or token, or is integrated out; the posterior is no Gaussian, or
            one given hyper-parameters.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.guides import MeanField
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> _, projected = weight_gaussian(model, MeanField(model, init_scale=0.5))
    >>> projected(torch.ones(32)).square().sum()  # the variance of the sum of 32 independent entries
    tensor(8.0000)
    """
    fns: dict[str, Any] = {}
    draws = _sampled(model, guide, [PosteriorMean()], 1, fns)
    sizes = {site.name: math.prod(site.shape) for site in model.latent_sites}
    require_gaussian(fns, {*sizes, JOINT})
    groups = [([name], fns[name]) for name in sizes]
    if JOINT in fns:  # the sites of the adapters, which stand first, are its parts
        groups = [([site.name for site in model.sites], fns[JOINT]), *groups[len(model.sites) :]]

    def projection(rows: Float[Tensor, "*S D"]) -> Float[Tensor, "*S P"]:
        parts = dict(zip(sizes, rows.split(list(sizes.values()), -1), strict=True))
        return torch.cat([projected(fn, torch.cat([parts[name] for name in names], -1)) for names, fn in groups], -1)

    return {name: value[0] for name, value in draws.items()}, projection


def _sampled(
    model: AdapterModel,
    guide: AdapterGuide,
    values: Sequence[Messenger],
    count: int,
    fns: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Run the statements of all weights, and no pass, under handlers that give the values, the last one first.

    ``fns``, if given, takes the distribution of every site, and of what else was sampled for them.
    """
    require_pair(model, guide)
    require_global(model.sites)
    device = next(model.parameters()).device
    draws: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model, guide))
        for handler in values:
            stack.enter_context(handler)
        stack.enter_context(pyro.plate("samples", count, dim=-2))
        stack.enter_context(guide)
        prior = model.prior.sampled((count,), device)
        for site in model.latent_sites:
            single = (model.head_prior if guide.is_of_head(site) else prior).of(site)
            call = SiteCall(site, num_sites=len(model.sites))
            infer: Any = {SITE: call, SINGLE_PRIOR: single}
            value = pyro.sample(site.name, site.wrap(single, None), infer=infer)
            draws[site.name] = value.detach().expand(count, 1, *site.shape).reshape(count, *site.shape)
            require_drawn(model.head, call)
    if fns is not None:
        nodes: dict[str, Any] = guide.trace.nodes
        fns.update({name: node["fn"] for name, node in nodes.items() if node["type"] == "sample"})
    guide.trace = type(guide.trace)()
    return draws
