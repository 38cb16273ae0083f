"""One draw of all weights of a posterior, by its number: the one that ``predict`` makes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyro
import torch
from torch import Tensor

from bayes_adapters.inference._draw_checks import require_drawn, require_global
from bayes_adapters.inference._lock import exclusive
from bayes_adapters.inference._pair_checks import require_pair
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import KeyedDraws
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.predictive import evaluating
from bayes_adapters.priors import SINGLE_PRIOR
from bayes_adapters.sites import SITE, SiteCall


@exclusive()
@torch.no_grad()
def weight_draw(model: AdapterModel, guide: AdapterGuide, number: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Return site → value, shape ``site.shape``, of draw ``number`` of ``predict(model, guide, …, seed=seed)``.

    The same bits: a global draw is a function of (seed, site, number, entry), whatever the batch. No pass is run.

    Args:
        model: all of its sites are global: one draw for the whole data set.
        guide: made for it.
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
    require_pair(model, guide)
    require_global(model.sites)
    device = next(model.parameters()).device
    numbers = torch.tensor([number], device=device)
    draws: dict[str, Tensor] = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model, guide))
        stack.enter_context(KeyedDraws(seed, numbers, torch.zeros_like(numbers)))
        stack.enter_context(pyro.plate("samples", 1, dim=-2))
        stack.enter_context(guide)
        prior = model.prior.sampled((1,), device)
        for site in model.latent_sites:
            single = (model.head_prior if guide.is_of_head(site) else prior).of(site)
            call = SiteCall(site, num_sites=len(model.sites))
            infer: Any = {SITE: call, SINGLE_PRIOR: single}
            draws[site.name] = pyro.sample(site.name, site.wrap(single, None), infer=infer).reshape(site.shape)
            require_drawn(model.head, call)
    guide.trace = type(guide.trace)()
    return draws
