"""One forward pass of a model: the state that adapted layers see while it runs, and how they draw local sites."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import pyro
from jaxtyping import Bool, Float
from pyro.poutine.runtime import get_plates
from torch import Tensor

from bayes_adapters.data.batch import Batch
from bayes_adapters.data.rows import require_length
from bayes_adapters.data.streams import mask_at
from bayes_adapters.errors import ConfigError, DataError, FoldError
from bayes_adapters.priors import Prior
from bayes_adapters.sites import SITE, Granularity, Part, Site, SiteCall


@dataclass(frozen=True)
class Weight:
    """One global draw for one layer.

    Args:
        value: shape (*event) or (*S, 1, *event).
        mean: the posterior's mean, shape (*event), where flipout or local reparametrisation needs it; else None.
        scale: its standard deviation, shape (*event), where the guide asks for local reparametrisation; ``value`` is
            then the mean.
    """

    value: Tensor
    mean: Tensor | None = None
    scale: Tensor | None = None


@dataclass(frozen=True)
class ForwardPass:
    """The state of one forward pass of a model, visible to adapted layers while it runs.

    Args:
        batch: what the model was called with.
        outer: sizes of the sample plates around the model, outermost first.
        prior: of every site.
        weights: (part, layer path) → global draw.
        num_sites: number of sites of the model.
        scratch: shared by the guide's calls.
        windows: layer → the block around it that attends within windows; other layers are left out.
        tokens: block with windows → tokens of an example at its input, while it runs.
        drawn: names of the local sites drawn so far.
        both_layouts: whether the backbone has layers that see (T, S·B, k) beside those that see (S·B, T, k).
    """

    batch: Batch
    outer: tuple[int, ...]
    prior: Prior
    weights: Mapping[tuple[Part, str], Weight]
    num_sites: int
    scratch: dict[str, Tensor]
    windows: Mapping[str, str] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    drawn: set[str] = field(default_factory=set)
    both_layouts: bool = False

    @property
    def rows(self) -> int:
        """S·B, samples × examples."""
        return math.prod(self.outer) * self.batch.size

    def windows_at(self, layer: str, feature: Float[Tensor, "windows *T k"]) -> int:
        """Return into how many windows each example is cut at ``layer``; its rows are [sample, example, window].

        Raises:
            DataError: the layer is in a block with windows and its rows are not those of the examples.
        """
        if layer not in self.windows:
            return 1
        if feature.shape[0] % self.rows:
            name = ".".join(layer.split(".")[-2:])
            raise DataError(
                f"The adapted layer {layer!r} received {feature.shape[0]} rows where there are {self.rows} examples × "
                "samples: it does not run on the examples (a table of relative positions, as in Swin V2's attention?), "
                f"so no draw can belong to one. Leave it out: Targets(..., exclude=[{name!r}])."
            )
        return feature.shape[0] // self.rows

    def tokens_first(self, layer: str, feature: Float[Tensor, "n *T k"]) -> bool:
        """Whether a layer's input has the shape (T, S·B, k), as in Longformer's attention and in XLNet.

        Raises:
            FoldError: T = S·B, so that the shape does not tell.
        """
        if not self.both_layouts or feature.dim() != 3 or feature.shape[1] != self.rows:
            return False
        if feature.shape[0] == self.rows > 1:
            raise FoldError(
                f"The adapted layer {layer!r} received {self.rows} × {self.rows} vectors, and this backbone has layers "
                "that see (tokens, examples) and layers that see (examples, tokens): which is which does not show "
                "where examples × samples are as many as tokens. Take another chunk_size, batch size or padding."
            )
        return feature.shape[0] != self.rows

    def require_examples(self, layer: str, feature: Float[Tensor, "windows *T k"], *, signs: bool) -> None:
        """Check that a layer with global parts runs on examples, where each has its own draw or its own signs.

        Its rows are then the examples, their windows where it is known to have any, or, of a matrix, the examples'
        tokens one after the other (OPT).

        Args:
            layer: the layer's path.
            feature: its input.
            signs: whether each example has its own signs.

        Raises:
            FoldError: it runs on something else, and several draws are folded into this pass.
            ConfigError: it runs on something else, and ``signs``.
        """
        several = feature.dim() == 2 or layer in self.windows
        if feature.shape[0] == self.rows or (several and feature.shape[0] % self.rows == 0):
            return
        what = (
            f"The adapted layer {layer!r} received {feature.shape[0]} rows where there are {self.rows} examples × "
            "samples: it does not run on the examples (one table of relative positions for all, as in DeBERTa?)"
        )
        if math.prod(self.outer) > 1:
            raise FoldError(
                f"{what}, so several draws of it cannot share a pass. Take one a pass: chunk_size=1 in predict, "
                "num_particles=1 in the ELBO."
            )
        if signs:
            raise ConfigError(
                f"{what}, so flipout has no example whose signs it could take. Build the model with flipout=False."
            )

    def draw(
        self,
        site: Site,
        feature: Float[Tensor, "windows *T k"],
        *,
        tokens: bool = True,
        kept: Bool[Tensor, " rows"] | None = None,
    ) -> Float[Tensor, "rows n *event"]:
        """Sample a local ``site``, one draw for each real token, or one an example (n = 1).

        Args:
            site: a token or sequence site.
            feature: what the draw acts on, or depends on, S·B rows in the order [S, B]; within windows (S·B · windows,
                T, k), where an example's tokens are those of all its windows.
            tokens: whether the feature's second axis is that of the batch's tokens.
            kept: of a sequence site, False where an example's draw has no effect, so that it has no KL.

        Raises:
            ConfigError: the layer ran twice in this pass, or does not keep the token axis.
            DataError: another number of rows than examples × samples, or windows that hold padding.
        """
        if site.name in self.drawn:
            raise ConfigError(
                f"The backbone applies the adapted layer {site.layers[0]!r} more than once in a pass (as ALBERT shares "
                "its layers), so its core is no single sample site. Use granularity='global', or adapt other layers."
            )
        self.drawn.add(site.name)
        rows, size, windows = self.rows, self.batch.size, 1
        if tokens:
            windows = self.windows_at(site.layers[0], feature)
            self._require_whole(site.layers[0], feature)
        if feature.shape[0] != rows * windows:
            raise DataError(
                f"The adapted layer {site.layers[0]!r} received {feature.shape[0]} rows where the batch has {size} "
                f"examples and {math.prod(self.outer)} samples. Does the backbone merge or split examples before this "
                "layer?"
            )
        mask = self._mask_for(site, feature) if tokens else None
        feature = feature.reshape(*self.outer, size, -1, feature.shape[-1]).float()
        if site.granularity is Granularity.SEQUENCE:
            feature = _masked_mean(feature, mask)
            mask = None if kept is None else kept[:size, None]
        call = SiteCall(site, feature, mask, self.batch.context, self.num_sites, self.scratch)
        infer: Any = {SITE: call}
        prior = site.wrap(self.prior.of(site).expand(feature.shape[:-1]), mask)
        value = pyro.sample(site.name, prior, infer=infer)
        return value.reshape(rows, -1, *site.event)

    def _require_whole(self, layer: str, feature: Tensor) -> None:
        """Raise :class:`DataError` if a block with windows has padded its image: padding has no draw and no KL."""
        tokens = self.tokens.get(self.windows.get(layer, ""))
        seen = math.prod(feature.shape[:-1]) // self.rows
        if tokens is not None and seen != tokens:
            raise DataError(
                f"The adapted layer {layer!r} sees {seen} tokens of an example where its block's input has {tokens}: "
                "the backbone pads images up to whole windows, and padding has no draw of its own. Resize the images "
                "so that at every stage the windows divide the grid of patches, or use granularity='global'."
            )

    def _mask_for(self, site: Site, feature: Tensor) -> Bool[Tensor, "B T"] | None:
        mask = mask_at(self.batch.inputs, site.layers[0])
        if mask is None or feature.dim() == 2:
            return None
        others = "; else adapt layers that keep the token axis, use granularity='global', or pass no mask"
        require_length(mask, feature.shape[1], f"the adapted layer {site.layers[0]!r} sees", otherwise=others)
        return mask


def draw_weights(sites: list[Site], prior: Prior, batch: Batch, num_data: int | None) -> dict[tuple[Part, str], Weight]:
    """Sample every global site, before the backbone runs; each has one KL per data set of ``num_data`` examples."""
    weights: dict[tuple[Part, str], Weight] = {}
    for site in sites:
        if site.granularity is not Granularity.GLOBAL or num_data is None:
            continue
        call = SiteCall(site, None, None, batch.context, len(sites), {})
        infer: Any = {SITE: call}
        with pyro.poutine.scale(scale=1.0 / num_data):
            value = pyro.sample(site.name, site.wrap(prior.of(site), None), infer=infer)
        place = value.dim() - len(site.shape)
        mean, scale = call.scratch.get("mean"), call.scratch.get("scale")
        if value is not call.scratch.get("draw"):
            scale = None  # the value was conditioned on: there is nothing random left to integrate over
        for i, path in enumerate(site.layers):
            weights[site.part, path] = Weight(
                value.select(place, i), None if mean is None else mean[i], None if scale is None else scale[i]
            )
    return weights


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
