"""All random numbers of a model as one vector of reals: what references are summaries of.

A weight is itself; a hyper-parameter is taken back to the reals by the map that guides use, so a positive one is its
logarithm. With values θ = f(u) the density of u is ``p(θ) |det ∂f/∂u|``.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from pyro import poutine
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.priors import bijection


class Entry(NamedTuple):
    """A latent site's place in the vector: its name, its shape, and the map from reals, None where it is real."""

    name: str
    shape: tuple[int, ...]
    onto: Any


def layout(model: AdapterModel) -> list[Entry]:
    """Return the sites in their order: weights, then hyper-parameters by name."""
    found = [Entry(site.name, tuple(site.shape), None) for site in model.latent_sites]
    hyper = sorted(model.prior.hyper_sites, key=lambda site: site.name)
    return found + [Entry(site.name, tuple(site.start.shape), bijection(site.support)) for site in hyper]


def labels(model: AdapterModel) -> list[str]:
    """Return a name for every number, such as ``core.global[0,1,0]``."""
    found = []
    for name, shape, _ in layout(model):
        places = product(*(range(n) for n in shape)) if shape else [()]
        found += [name + (f"[{','.join(map(str, place))}]" if place else "") for place in places]
    return found


def joined(model: AdapterModel, values: Mapping[str, Tensor]) -> Float[Tensor, "S D"]:
    """Return the vectors, float64, of site → values, shape (S, …) with as many numbers a draw as the site has."""
    parts = []
    for name, shape, onto in layout(model):
        flat = values[name].detach().double().reshape(-1, prod(shape))
        parts.append(flat if onto is None else onto.inv(flat))
    return torch.cat(parts, 1)


def parted(model: AdapterModel, vector: Float[Tensor, " D"]) -> tuple[dict[str, Tensor], float]:
    """Return site → value, float32, and log |det ∂f/∂u|, of one vector of reals."""
    values, volume, start = {}, 0.0, 0
    for name, shape, onto in layout(model):
        part = vector[start : start + prod(shape)]
        start += prod(shape)
        if onto is not None:
            part, real = onto(part), part
            volume += float(onto.log_abs_det_jacobian(real, part).sum())
        values[name] = part.float().reshape(shape)
    return values, volume


@torch.no_grad()
def log_density(model: AdapterModel, batch: Batch, vector: Float[Tensor, " D"]) -> float:
    """Return log p(y, u) in nats: of all examples and of the vector of all latents, hyper-parameters on the reals.

    Args:
        model: its random parts are weights.
        batch: all examples, with targets.
        vector: u, float64.
    """
    values, volume = parted(model, vector)
    with evaluating(model):
        trace = poutine.trace(poutine.condition(model, values)).get_trace(batch)
    return float(trace.log_prob_sum()) + volume
