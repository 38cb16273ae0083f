"""Where ``predict`` gets its draws from: a guide of this library, any other Pyro guide, or draws that are there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.distributions import base_distribution
from bayes_adapters.inference._checks import require_one_function
from bayes_adapters.inference._draw_checks import require_median, require_no_temperature, require_points
from bayes_adapters.inference._linearised_checks import require_some_weights
from bayes_adapters.inference._nested_checks import require_nested, require_no_moments
from bayes_adapters.inference.guide import AdapterGuide
from bayes_adapters.inference.handlers import (
    KeyedDraws,
    OwnSites,
    PosteriorMean,
    SubstitutedDraws,
    UnreadOutcome,
    is_own,
)
from bayes_adapters.inference.linearised import Linearised, require_weights_guide
from bayes_adapters.inference.linearised_outputs import Linearisation, LinearisedOutputs
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.inference.tempering import Tempering

AnyGuide = AdapterGuide | Callable[..., Any] | Mapping[str, Tensor]
"""What gives draws of a model's latent sites: see :func:`bayes_adapters.predict`."""


class OwnGuide:
    """A guide of this library: model and guide share the pass.

    As every source it has ``is_random(batch)``, whether draws of the adapters' sites are known to differ. And
    ``outcome(batch, numbers, ids)``, which runs one pass and returns p(y | draw) with batch shape (n, B), and whether
    anything in the pass was random: ``numbers``, shape (n,), int64, says which draws, ``ids``, shape (B,), int64, which
    examples of the data set. Where nothing was, one pass tells all.

    Args:
        model: the model.
        guide: its guide.
        mean_only: set the latents to their posterior means.
        seed: of keyed draws; None takes torch's generator.
        temperature: τ of :class:`bayes_adapters.inference.tempering.Tempering`.
        local_samples: K: draw n has the weights of number n // K and the local latents of number n mod K.
    """

    def __init__(
        self,
        model: AdapterModel,
        guide: AdapterGuide,
        mean_only: bool,
        seed: int | None,
        temperature: float = 1.0,
        local_samples: int = 1,
    ) -> None:
        self.model, self.guide, self.mean_only, self.seed = model, guide, mean_only, seed
        self.temperature, self.local_samples = temperature, local_samples

    def is_random(self, batch: Batch) -> bool:
        adapters = bool(self.model.sites) and not self.guide.deterministic
        head = self.guide.head_posterior
        return not self.mean_only and (adapters or (head is not None and head.draws))

    def nodes(self, batch: Batch, numbers: Tensor, ids: Tensor) -> dict[str, Any]:
        """Site → its statement in one pass, whose plate of samples holds the draws ``numbers``."""
        weights = numbers // self.local_samples
        local = numbers if self.local_samples == 1 else numbers % self.local_samples
        with ExitStack() as stack:
            stack.enter_context(UnreadOutcome())
            stack.enter_context(OwnSites(self.seed, weights, ids, self.mean_only, local))
            if self.temperature != 1.0:
                stack.enter_context(Tempering(self.temperature))
            if self.mean_only:
                stack.enter_context(PosteriorMean())
            elif self.seed is not None:
                stack.enter_context(KeyedDraws(self.seed, weights, ids, local))
            stack.enter_context(pyro.plate("samples", len(numbers), dim=-2))
            self.guide(batch)
        nodes: dict[str, Any] = self.guide.trace.nodes
        self.guide.trace = type(self.guide.trace)()
        if self.guide.deterministic:
            require_points(self.guide, self.model.sites, nodes)
        if self.local_samples > 1:
            require_no_moments(nodes)
        return nodes

    def outcome(self, batch: Batch, numbers: Tensor, ids: Tensor) -> tuple[Any, bool]:
        nodes = self.nodes(batch, numbers, ids)
        return nodes["obs"]["fn"], any(is_own(node) and not _is_point(node) for node in nodes.values())


class Replayed:
    """Draws first, then the model with them: any callable guide, or draws that were made before.

    Args:
        model: the model.
        guide: what gives the draws.
        mean_only: one draw: the mean of given draws, or an autoguide's median.
        seed: the draw of number s depends on (seed, s) and, where the guide looks at it, on the batch.
        temperature: τ, of given draws about their mean.
    """

    def __init__(
        self, model: AdapterModel, guide: AnyGuide, mean_only: bool, seed: int, temperature: float = 1.0
    ) -> None:
        self.model, self.guide, self.mean_only, self.seed = model, guide, mean_only, seed
        self.root = temperature**0.5
        require_no_temperature(guide, temperature)
        self.device = next(model.parameters()).device

    def is_random(self, batch: Batch) -> bool:
        if self.mean_only or isinstance(self.guide, Mapping):
            return not self.mean_only
        nodes = self._traced(batch, 0)
        return not all(_is_point(node) for node in nodes.values())

    def outcome(self, batch: Batch, numbers: Tensor, ids: Tensor) -> tuple[Any, bool]:
        draws = {name: value.to(self.device) for name, value in self._draws(batch, numbers).items()}
        own, plate = OwnSites(self.seed, numbers, ids, self.mean_only), pyro.plate("samples", len(numbers), dim=-2)
        with self._forked(0), UnreadOutcome(), own, SubstitutedDraws(draws), plate:
            trace: Any = poutine.trace(self.model).get_trace(batch)
        left = [node for name, node in trace.nodes.items() if name not in draws and is_own(node)]
        return trace.nodes["obs"]["fn"], any(not _is_point(node) for node in left)

    def _draws(self, batch: Batch, numbers: Tensor) -> dict[str, Tensor]:
        """Site → values, shape (n, *shape of the site)."""
        if isinstance(self.guide, Mapping):
            given = dict(self.guide)
            if self.mean_only:
                return {name: value.float().mean(0, keepdim=True) for name, value in given.items()}
            chosen = {name: value[numbers.to(value.device)] for name, value in given.items()}
            if self.root == 1.0:
                return chosen
            return {name: torch.lerp(given[name].mean(0), value, self.root) for name, value in chosen.items()}
        if self.mean_only:
            guide = require_median(self.guide)
            with self._forked(0):
                return {name: value.unsqueeze(0) for name, value in guide.median(batch).items()}
        each = [{n: node["value"] for n, node in self._traced(batch, s).items()} for s in numbers.tolist()]
        return {name: torch.stack([one[name] for one in each]) for name in each[0]}

    def _traced(self, batch: Batch, number: int) -> dict[str, Any]:
        """The guide's latent sites in its draw of this number, those that only help it to draw left out."""
        guide: Any = self.guide
        with self._forked(number), UnreadOutcome():
            trace: Any = poutine.trace(guide).get_trace(batch)
        nodes = {name: trace.nodes[name] for name in trace.stochastic_nodes}
        auxiliary = {name for name, node in nodes.items() if node["infer"].get("is_auxiliary")}
        points = [n for n, node in nodes.items() if n not in auxiliary]
        if auxiliary:  # sites that are functions of an auxiliary draw look like points
            return {n: {**nodes[n], "fn": nodes[next(iter(auxiliary))]["fn"]} for n in points}
        return {n: nodes[n] for n in points}

    def _forked(self, number: int) -> Any:
        """A context with torch's generators at the seed of one draw; after it they are as they were."""
        return _Forked(self.device, self.seed * 1_000_003 + number)


def _is_point(node: Mapping[str, Any]) -> bool:
    return isinstance(base_distribution(node["fn"]), Delta)


class _Forked:
    def __init__(self, device: torch.device, seed: int) -> None:
        self.seed = seed
        devices = [device.index or 0] if device.type == "cuda" else []
        self.fork = torch.random.fork_rng(devices=devices)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed % (1 << 63))

    def __exit__(self, *error: Any) -> None:
        self.fork.__exit__(*error)


Source = OwnGuide | Replayed | Linearised | LinearisedOutputs


def source_of(
    model: AdapterModel,
    guide: AnyGuide,
    mean_only: bool,
    seed: int | None,
    linearised: Linearisation | None = None,
    temperature: float = 1.0,
    local_samples: int = 1,
    at_once: int | None = None,
) -> Source:
    """Return where the draws of ``guide`` come from; without a seed the number of the draws' seed is torch's."""
    if local_samples > 1:
        require_nested(model, guide, mean_only=mean_only, seed=seed, linearised=linearised is not None)
    if isinstance(guide, AdapterGuide) and not linearised:
        return OwnGuide(model, guide, mean_only, seed, temperature, local_samples)
    number = int(torch.randint(1 << 62, ())) if seed is None else seed
    if linearised:
        require_some_weights(model)
    if linearised is Linearisation.WEIGHTS or (linearised and mean_only):
        return Linearised(model, require_weights_guide(guide), mean_only, number, temperature)
    if linearised:
        require_one_function(f"linearised={linearised.value!r}", True, model.likelihood)
        return LinearisedOutputs(model, require_weights_guide(guide), linearised, number, temperature, at_once)
    return Replayed(model, guide, mean_only, number, temperature)
