"""One forward pass of a model: the state that adapted layers see while it runs, and how they draw local sites."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro.poutine.runtime import get_plates
from torch import Tensor

from bayes_adapters.adapters._checks import applied_twice, padded_windows, unknown_rows
from bayes_adapters.adapters.moments import Moments
from bayes_adapters.adapters.reparametrisation import Draw, Flipout, LocalReparametrisation, Weight
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.data.rows import require_length
from bayes_adapters.data.streams import mask_at
from bayes_adapters.priors import SINGLE_PRIOR, Prior, SampledPrior
from bayes_adapters.sites import SITE, Asked, Granularity, Memo, Part, Site, SiteCall, Summary

Weights = Mapping[tuple[Part, str], Weight]
"""(part, layer path) → global draw."""


@dataclass(frozen=True)
class Descriptor:
    """What a path between modalities is conditioned on at one depth.

    Args:
        value: the other modality's pooled stream, shape (S·B, d_c).
        present: True where the example has the layer's own modality; elsewhere Φ has no effect, and no KL. None: all.
    """

    value: Float[Tensor, "rows d"]
    present: Bool[Tensor, " rows"] | None = None

    def severed(self) -> Descriptor:
        """Return it without what it was computed from, which may be the very block that runs again with it."""
        return Descriptor(self.value.detach().requires_grad_(self.value.requires_grad), self.present)


@dataclass(frozen=True)
class ForwardPass:
    """The state of one forward pass of a model, visible to adapted layers while it runs.

    Args:
        rows: the layout of examples × samples.
        prior: of every site, given its hyper-parameters.
        weights: every global draw.
        num_sites: number of sites of the model.
        memo: shared by the guide's calls.
        noise: what weights keep of the noise that each example has of its own.
        tokens: block with windows → tokens of an example at its input, while it runs.
        descriptors: path between modalities, at one stage of one depth → its descriptor; each is written once.
        severed: the same without what they were computed from, for blocks that run again.
        drawn: names of the local sites drawn so far.
        first: shape (B,), int64: the number of each example's first token in this pass, where those before it were seen
            in earlier passes and their keys and values are in a cache; None is 0.
        asked: what the loss asks of local sites; None where draws and posteriors are wanted.
        checkpointed: whether what runs now will run again in backward.
        again: make what has to be around a block that runs again, besides its pass.
    """

    rows: Rows
    prior: Prior | SampledPrior
    weights: Weights
    num_sites: int
    memo: Memo = field(default_factory=Memo)
    noise: Memo = field(default_factory=Memo)
    tokens: dict[str, int] = field(default_factory=dict)
    descriptors: dict[str, Descriptor] = field(default_factory=dict)
    severed: dict[str, Descriptor] = field(default_factory=dict)
    drawn: set[str] = field(default_factory=set)
    first: Int[Tensor, " B"] | None = None
    asked: Asked | None = None
    checkpointed: bool = False
    again: list[Callable[[], AbstractContextManager[Any]]] = field(default_factory=list)

    def tokens_first(self, layer: str, sites: Collection[Site], x: Float[Tensor, "n *T k"]) -> bool:
        """Whether ``layer``'s input has the shape (T, S·B, k); its other rows are checked.

        Where all rows see one draw, their order has no effect and is not asked for.

        Raises:
            FoldError, ConfigError, DataError: the rows are not those of the examples, and have to be.
        """
        weights = [self.weights[site.part, layer] for site in sites if site.granularity is Granularity.GLOBAL]
        dealt = [weight for weight in weights if weight.needs_rows]
        local = len(weights) < len(sites)
        first = bool(dealt or local) and self.rows.tokens_first(layer, x)
        if first:
            x = x.transpose(0, 1)
        self.rows.windows_at(layer, x)
        for weight in dealt:
            weight.check(self.rows, layer, x)
        return first

    def draw(
        self,
        site: Site,
        feature: Float[Tensor, "windows *T k"],
        *,
        tokens: bool = True,
        present: Bool[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows n *event"]:
        """Sample a local ``site``, one draw for each real token, or one per example or segment (n = 1).

        Args:
            site: a token or sequence site.
            feature: what the draw acts on, or depends on, S·B rows in the order [S, B]; within windows (S·B · windows,
                T, k), where an example's tokens are those of all its windows.
            tokens: whether the feature's second axis is that of the batch's tokens.
            present: of a sequence site, False where an example's draw has no effect, so that it has no KL.

        Returns:
            The draws; those of a keep mask divided by the prior's mean.

        Raises:
            ConfigError: the layer ran twice in this pass, or does not keep the token axis.
            DataError: another number of rows than examples × samples, or windows that hold padding.
        """
        layer, batch = site.layers[0], self.rows.batch
        if site.name in self.drawn:
            raise applied_twice(layer)
        self.drawn.add(site.name)
        if tokens:
            feature = self.rows.by_example(layer, feature)
            self._require_whole(layer, feature)
        elif feature.shape[0] != self.rows.count:
            raise unknown_rows(layer, feature.shape[0], batch.size, self.rows.samples, routed=False)
        mask = self._mask_for(layer, feature) if tokens else None
        feature = feature.reshape(*self.rows.outer, batch.size, -1, feature.shape[-1]).float()
        if site.granularity is Granularity.SEQUENCE:
            feature = _masked_mean(feature, mask)
        if site.granularity is Granularity.SEQUENCE or not tokens:
            mask = None if present is None else present[: batch.size * self.rows.each].reshape(batch.size, -1)
        first = self.first if tokens and site.granularity is Granularity.TOKEN else None
        summary = Summary(self.asked.with_scales) if self.asked is not None and self.checkpointed else None
        call = SiteCall(site, feature, mask, batch.context, self.num_sites, self.memo, first=first, summary=summary)
        single = self.prior.of(site)
        infer: Any = {SITE: call, SINGLE_PRIOR: single}
        value = pyro.sample(site.name, site.wrap(single.expand(feature.shape[:-1]), mask), infer=infer)
        value = value.reshape(self.rows.count, -1, *site.event)
        return value / single.mean if _is_dropout(site.part) else value

    def recomputes(self, site: Site) -> bool:
        """Whether ``site`` is to run again in backward, on its own."""
        wanted = self.asked is not None and self.asked.recompute and torch.is_grad_enabled()
        return wanted and site.granularity is Granularity.TOKEN

    def _require_whole(self, layer: str, feature: Tensor) -> None:
        """Refuse a block with windows that has padded its image: padding has no draw and no KL."""
        tokens = self.tokens.get(self.rows.windows.get(layer, ""))
        seen = math.prod(feature.shape[:-1]) // self.rows.count
        if tokens is not None and seen != tokens:
            raise padded_windows(layer, seen, tokens)

    def _mask_for(self, layer: str, feature: Tensor) -> Bool[Tensor, "B T"] | None:
        mask = mask_at(self.rows.batch.inputs, layer)
        if mask is None or feature.dim() == 2:
            return None
        others = "; else adapt layers that keep the token axis, use granularity='global', or pass no mask"
        require_length(mask, feature.shape[1], f"the adapted layer {layer!r} sees", otherwise=others)
        return mask


def draw_weights(
    sites: list[Site],
    prior: Prior | SampledPrior,
    rows: Rows,
    flipped: Collection[str] = (),
    noise: Memo | None = None,
) -> dict[tuple[Part, str], Weight]:
    """Sample every global site, before the backbone runs; each has one KL per data set.

    Args:
        sites: all sites of the model.
        prior: of every site.
        rows: the layout of the pass.
        flipped: paths of the layers whose A has signs per example.
        noise: of the pass, for weights whose examples have noise of their own; None: they share none.
    """
    noise = Memo() if noise is None else noise
    weights: dict[tuple[Part, str], Weight] = {}
    for site in sites:
        if site.granularity is not Granularity.GLOBAL:
            continue
        call = SiteCall(site, context=rows.batch.context, num_sites=len(sites))
        single = prior.of(site)
        infer: Any = {SITE: call, SINGLE_PRIOR: single}
        value = pyro.sample(site.name, site.wrap(single, None), infer=infer)
        for i, path in enumerate(site.layers):
            draw = value.select(value.dim() - len(site.shape), i)
            if _is_dropout(site.part):
                draw = draw / single.mean[i]
            weights[site.part, path] = _reparametrised(
                draw, call, path, rows, noise, drawn=value is not call.point, flipped=path in flipped
            )
    return weights


def _is_dropout(part: Part) -> bool:
    """Whether draws are keep masks that are divided by the prior's mean."""
    return not part.real and part.divided


def _reparametrised(
    draw: Tensor, call: SiteCall, path: str, rows: Rows, noise: Memo, *, drawn: bool, flipped: bool
) -> Weight:
    """The draw of one of the site's layers, as guide and model want it to be multiplied by."""
    layer = call.site.layers.index(path)
    if call.moments is not None and not drawn:
        return Moments(call.moments, layer)
    if call.mean is not None and call.scale is not None and not drawn:  # else conditioned on: nothing random is left
        return LocalReparametrisation(call.mean[layer], call.scale[layer], path, rows, noise)
    if call.mean is not None and flipped and call.site.part == Part.A:
        return Flipout(draw, call.mean[layer], rows.count, noise)
    watch = None if call.watch is None else partial(call.watch, layer)
    return Draw(draw, call.site.part.diagonal, call.posterior, watch)


def _masked_mean(feature: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return feature.mean(-2, keepdim=True)
    weight = mask[..., None].to(feature.dtype)
    return (feature * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True)


def outer_shape(inner: int = 1) -> tuple[int, ...]:
    """Sizes of the vectorised plates around the model, outermost first; ``inner`` dims belong to the model."""
    frames = {f.dim: f.size for f in get_plates() if f.dim is not None and f.dim < -inner}
    depth = max((-d for d in frames), default=inner)
    return tuple(frames.get(d, 1) for d in range(-depth, -inner))


_current: ContextVar[ForwardPass | None] = ContextVar("bayes_adapters_forward_pass", default=None)


def current_pass() -> ForwardPass | None:
    """The forward pass that is running in this thread, or None."""
    return _current.get()


@contextmanager
def running(forward_pass: ForwardPass) -> Iterator[ForwardPass]:
    """Make ``forward_pass`` the current one while the backbone runs."""
    token = _current.set(forward_pass)
    try:
        yield forward_pass
    finally:
        _current.reset(token)
