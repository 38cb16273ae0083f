"""The core of an adapter as a Pyro sample site.

A site is described once, by a :class:`CoreSite`; whatever one call adds to it (the layer's low-rank feature, the
token mask, the context) travels in the sample statement's ``infer`` dictionary as a :class:`CoreCall`, where a guide
finds it. Nothing is stored on a module between calls.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pyro
import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.runtime import get_plates
from torch import Tensor

from bayes_adapters.batch import Batch, Frames
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.priors import Prior

CORE = "core"
"""The key of the :class:`CoreCall` in a sample statement's ``infer`` dictionary."""


class Granularity(StrEnum):
    """For what one draw of the core is shared."""

    GLOBAL = "global"
    """One core a layer for the whole data set: a weight. Its KL counts once per data set."""
    SEQUENCE = "sequence"
    """One core per example and layer: a local latent. Its KL counts once per example."""
    TOKEN = "token"
    """One core per token and layer (C-LoRA, CALIBER): a local latent; padding has no core and no KL."""


@dataclass(frozen=True)
class CoreSite:
    """One sample site: the cores of one layer, or, for global cores, of all layers of one rank.

    Args:
        name: the Pyro site's name, ``core.<module path>``; ``core.global`` for global cores.
        layers: module paths of the adapted layers the site serves (one, unless the site is global).
        rank: r, the side of each core.
        granularity: see :class:`Granularity`.
    """

    name: str
    layers: tuple[str, ...]
    rank: int
    granularity: Granularity

    @property
    def shape(self) -> tuple[int, ...]:
        """(r, r) for a local site, (number of layers, r, r) for a global one."""
        core = (self.rank, self.rank)
        return (len(self.layers), *core) if self.granularity is Granularity.GLOBAL else core

    def wrap(self, core: TorchDistributionMixin, mask: Bool[Tensor, "B T"] | None) -> TorchDistributionMixin:
        """Bring a distribution over single cores into the site's plate and event dimensions.

        Prior and posterior both pass through here, so their structures match and Pyro finds the closed-form KL.

        Args:
            core: event shape (r, r); batch shape (L,) for a global site, (*S, B, T) for a token site and (*S, B, 1)
                for a sequence site.
            mask: shape (B, T), True where a token is real; None where nothing is masked.
        """
        return (core if mask is None else core.mask(mask)).to_event(1)


@dataclass(frozen=True)
class CoreCall:
    """What a guide may use to infer one site's cores in one forward pass.

    Args:
        site: the site.
        feature: this layer's low-rank feature z = A x, shape (*S, B, T, r); for sequence sites its mean over real
            tokens, shape (*S, B, 1, r); None for global sites. ``*S`` are the sizes of sample plates around the model.
        token_mask: shape (B, T), or None where there is no padding, as in sequence and global sites.
        context: modality → frames, shape (B, F, d); a modality that is absent is missing for the whole batch.
        num_sites: number of core sites of the model.
        scratch: lives as long as this forward pass; a guide keeps here what its sites share (projected keys, say).
    """

    site: CoreSite
    feature: Float[Tensor, "*S B T r"] | None
    token_mask: Bool[Tensor, "B T"] | None
    context: Mapping[str, Frames]
    num_sites: int
    scratch: dict[str, Tensor]

    @property
    def z(self) -> Float[Tensor, "*S B T r"]:
        """``feature``, for guides that serve local sites only."""
        if self.feature is None:
            raise ConfigError(f"The site {self.site.name!r} is global: its core is drawn before any feature exists.")
        return self.feature

    def token_counts(self) -> Int[Tensor, "B"] | int:
        """The number of cores each example has at this site: its real tokens, or 1 for sequence sites."""
        if self.token_mask is not None:
            return self.token_mask.sum(-1)
        return 1 if self.feature is None else self.feature.shape[-2]


@dataclass(frozen=True)
class ForwardPass:
    """The state of one forward pass of a model, visible to adapted layers while it runs."""

    batch: Batch
    outer: tuple[int, ...]
    prior: Prior
    cores: Mapping[str, Tensor]
    num_sites: int
    scratch: dict[str, Tensor]
    drawn: set[str] = field(default_factory=set)

    def draw(self, site: CoreSite, z: Float[Tensor, "rows *T r"]) -> Float[Tensor, "rows *T r"]:
        """Sample the cores of a local ``site`` and return E z; z has S·B rows, in the order [S, B]."""
        if site.name in self.drawn:
            raise ConfigError(
                f"The backbone applies the adapted layer {site.layers[0]!r} more than once in a pass (as ALBERT shares "
                "its layers), so its core is no single sample site. Use granularity='global', or adapt other layers."
            )
        self.drawn.add(site.name)
        rows, size = z.shape[0], self.batch.size
        if rows != math.prod(self.outer) * size:
            raise DataError(
                f"The adapted layer {site.layers[0]!r} received {rows} rows where the batch has {size} examples and "
                f"{math.prod(self.outer)} samples. Does the backbone merge or split examples before this layer?"
            )
        feature = z.reshape(*self.outer, size, -1, site.rank).float()
        mask = self._mask_for(site, z)
        if site.granularity is Granularity.SEQUENCE:
            feature = _masked_mean(feature, mask)
            mask = None
        shape = feature.shape[:-1]
        call = CoreCall(site, feature, mask, self.batch.context, self.num_sites, self.scratch)
        infer: Any = {CORE: call}
        core = pyro.sample(site.name, site.wrap(self.prior.core(site).expand(shape), mask), infer=infer)
        core = core.reshape(rows, -1, site.rank, site.rank)
        return (core * z.reshape(rows, -1, 1, site.rank)).sum(-1).reshape(z.shape)

    def global_core(self, layer: str, z: Float[Tensor, "rows *T r"]) -> Float[Tensor, "rows *T r"]:
        """Return E z for a core that was drawn before the forward pass; its shape is (r, r) or (*S, 1, r, r)."""
        core = self.cores[layer]
        rank = core.shape[-1]
        samples = core.reshape(-1, rank, rank)
        flat = z.reshape(samples.shape[0], -1, rank).to(core.dtype)
        return torch.matmul(flat, samples.mT).reshape(z.shape)

    def _mask_for(self, site: CoreSite, z: Tensor) -> Bool[Tensor, "B T"] | None:
        mask = self.batch.token_mask
        if mask is None or z.dim() == 2:
            return None
        if mask.shape[1] != z.shape[1]:
            raise ConfigError(
                f"The adapted layer {site.layers[0]!r} sees {z.shape[1]} positions where attention_mask has "
                f"{mask.shape[1]}. Adapt layers that keep the token axis, use granularity='global', or pass no mask."
            )
        return mask


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
