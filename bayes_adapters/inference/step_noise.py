"""Noise of a training step that does not depend on how its examples are cut: into micro-batches, or processes."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from jaxtyping import Int
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.handlers import KeyedDraws, OwnSites, is_own
from bayes_adapters.sites import SITE, Granularity, SiteCall


class StepNoise(Messenger):
    """Draw what a training step samples as a function of (seed, step, site, particle), and of the example if local.

    A weight, a hyper-parameter of a prior or a joint posterior is drawn by torch's generator, which is seeded for the
    site and given back: one draw per step, the same in every process and micro-batch, so that one draw is one function
    of all examples of the step. A latent of an example or token is drawn by its inverse CDF from uniforms that are a
    function of the example's number and the token's (:class:`~bayes_adapters.inference.handlers.KeyedDraws`); a family
    without inverse CDF is left to torch's generator. The guide runs inside a plate of particles at dimension −2.

    Noise that is no sample statement is torch's: dropout, the signs of flipout, local reparametrisation, and what a
    Gaussian-process head draws where its expectation has no closed form. It is each example's own, so the gradient's
    expectation is the same, however examples are cut.

    Args:
        seed: any integer.
        step: the optimiser step.
        particles: S, the size of the plate.
        examples: shape (B,), int64: the examples' numbers, different ones within a step.

    >>> import pyro, pyro.distributions as dist
    >>> from bayes_adapters.sites import Part, Site
    >>> site = Site("E", Part.CORE, ("layer",), (2, 2), Granularity.GLOBAL)
    >>> def draw(step, examples):
    ...     with StepNoise(0, step, 1, examples), pyro.plate("particles", 1, dim=-2):
    ...         return pyro.sample("E", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2), infer={"site": SiteCall(site)})
    >>> first = draw(0, torch.arange(3))
    >>> torch.equal(first, draw(0, torch.arange(3, 8))), torch.equal(first, draw(1, torch.arange(3)))
    (True, False)
    """

    def __init__(self, seed: int, step: int, particles: int, examples: Int[Tensor, " B"]) -> None:
        super().__init__()
        self.seed = _seed(seed, step)
        numbers = torch.arange(particles, device=examples.device)
        self.local = KeyedDraws(self.seed, numbers, examples)
        self.own = OwnSites(self.seed, numbers, examples, mean_only=False)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or msg["name"] == "obs" or site_is_subsample(msg):
            return
        call: SiteCall | None = msg["infer"].get(SITE)
        if call is not None and call.site.granularity is not Granularity.GLOBAL:
            _try(self.local, msg)
        elif is_own(msg) and any(frame.name == "data" for frame in msg["cond_indep_stack"]):
            _try(self.own, msg)
        else:
            msg["value"] = _seeded(msg["fn"], _seed(self.seed, msg["name"]))


def _try(handler: Any, msg: Any) -> None:
    """Let ``handler`` draw; a family without inverse CDF is drawn by Pyro, from torch's generator."""
    try:
        handler._pyro_sample(msg)
    except ConfigError:
        msg["value"] = None


def _seeded(fn: Any, seed: int) -> Tensor:
    """Draw from ``fn`` by torch's generators, seeded; afterwards they are as before."""
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        value: Tensor = fn()
    return value


def _seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that is a function of its arguments."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, parts)).encode()).digest()[:8], "big") >> 1
