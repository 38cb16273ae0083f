"""The random tensors of an adapter as Pyro sample sites.

A site is described once, by a :class:`Site`; whatever one call adds to it (the layer's low-rank feature, the token
mask, the context) travels in the sample statement's ``infer`` dictionary as a :class:`SiteCall`, where a guide finds
it. Nothing is stored on a module between calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import ConfigError

SITE = "site"
"""The key of the :class:`SiteCall` in a sample statement's ``infer`` dictionary."""


class Part(StrEnum):
    """Which tensor of ``h = W₀ x + s · B E A (m ⊙ x)`` a site draws."""

    CORE = "core"
    """E, shape (r, r)."""
    DIAGONAL = "diagonal"
    """The diagonal of E, shape (r,); the rest of E is zero."""
    A = "A"
    """A, shape (r, d_in)."""
    B = "B"
    """B, shape (d_out, r)."""
    MASK = "mask"
    """m, shape (d_in,): 0 or 1; what is kept is divided by the prior's mean."""
    CROSS = "cross"
    """Φ, the core of a path between modalities, shape (r_C, r_C); see :mod:`bayes_adapters.modalities.inter_path`."""
    FACTOR = "factor"
    """A factor of a multiplicative fusion, of any shape; see :class:`bayes_adapters.models.Wander`."""

    def event(self, rank: int, d_in: int, d_out: int) -> tuple[int, ...]:
        """Return the shape of one draw for a layer of these sizes; a fusion's factors belong to no layer."""
        shapes: dict[Part, tuple[int, ...]] = {
            Part.CORE: (rank, rank),
            Part.DIAGONAL: (rank,),
            Part.A: (rank, d_in),
            Part.B: (d_out, rank),
            Part.MASK: (d_in,),
            Part.CROSS: (rank, rank),
        }
        return shapes[self]


REAL = frozenset({Part.CORE, Part.DIAGONAL, Part.A, Part.B, Part.CROSS, Part.FACTOR})
"""Every part but the mask."""


class Granularity(StrEnum):
    """For what one draw is shared."""

    GLOBAL = "global"
    """One draw a layer for the whole data set: a weight. Its KL counts once per data set."""
    SEQUENCE = "sequence"
    """One draw per example and layer: a local latent. Its KL counts once per example."""
    TOKEN = "token"
    """One draw per token and layer (C-LoRA, CALIBER): a local latent; padding has no draw and no KL."""


@dataclass(frozen=True)
class Site:
    """One sample site: a part of one layer's adapter, or, for global parts, of all layers where it has one shape.

    Args:
        name: the Pyro site's name: ``<part>.<module path>``, or ``<part>.global`` for a group of layers.
        part: which tensor.
        layers: module paths of the adapted layers the site serves (one, unless the site is global).
        event: shape of one draw, see :class:`Part`.
        granularity: see :class:`Granularity`.
        source: for the core of a path between modalities, the modality at its other end.
    """

    name: str
    part: Part
    layers: tuple[str, ...]
    event: tuple[int, ...]
    granularity: Granularity
    source: str = ""

    @property
    def rank(self) -> int:
        """R of the layers served.

        Raises:
            ConfigError: the part has no rank (a mask, or a fusion's factor).
        """
        if self.part in (Part.MASK, Part.FACTOR):
            kind = "a mask over a layer's input" if self.part is Part.MASK else "a factor of a fusion"
            raise ConfigError(f"The site {self.name!r} is {kind}; it has no rank.")
        return self.event[-1 if self.part is Part.B else 0]

    @property
    def shape(self) -> tuple[int, ...]:
        """``event`` for a local site, (number of layers, *event) for a global one."""
        return (len(self.layers), *self.event) if self.granularity is Granularity.GLOBAL else self.event

    def wrap(self, single: TorchDistributionMixin, mask: Bool[Tensor, "B T"] | None) -> TorchDistributionMixin:
        """Bring a distribution over single draws into the site's plate and event dimensions.

        Prior and posterior both pass through here, so their structures match and Pyro finds the closed-form KL.

        Args:
            single: event shape ``event``; batch shape (L,) for a global site, (*S, B, T) for a token site and
                (*S, B, 1) for a sequence site.
            mask: shape (B, T), True where a token is real; None where nothing is masked.
        """
        return (single if mask is None else single.mask(mask)).to_event(1)


@dataclass(frozen=True)
class SiteCall:
    """What a guide may use to infer one site in one forward pass.

    Args:
        site: the site.
        feature: what the drawn tensor acts or depends on: this layer's low-rank feature z = A x, shape (*S, B, T, r),
            for a core; the layer's input, shape (*S, B, T, d_in), for a mask; the other modality's descriptor, shape
            (*S, B, 1, d_c), for the core of a path between modalities. Sequence sites get its mean over real tokens,
            shape (*S, B, 1, k). None for global sites. ``*S`` are the sizes of sample plates around the model.
        token_mask: shape (B, T), or None where there is no padding, as in global sites; shape (B, 1) in a sequence site
            whose draw has no effect for some examples.
        context: modality → frames, shape (B, F, d); a modality that is absent is missing for the whole batch.
        num_sites: number of sites of the model.
        scratch: lives as long as this forward pass; a guide keeps here what its sites share (projected keys, say).
    """

    site: Site
    feature: Float[Tensor, "*S B T k"] | None
    token_mask: Bool[Tensor, "B T"] | None
    context: Mapping[str, Frames]
    num_sites: int
    scratch: dict[str, Tensor]

    @property
    def z(self) -> Float[Tensor, "*S B T k"]:
        """``feature``, for guides that serve local sites only."""
        if self.feature is None:
            raise ConfigError(f"The site {self.site.name!r} is global: it is drawn before any feature exists.")
        return self.feature

    def token_counts(self) -> Int[Tensor, " B"] | int:
        """The number of draws each example has at this site: its real tokens, or 1 for sequence sites."""
        if self.token_mask is not None:
            return self.token_mask.sum(-1).clamp_min(1)  # without any the KL is 0, whatever it is divided by
        return 1 if self.feature is None else self.feature.shape[-2]


def build_sites(
    sizes: Mapping[str, tuple[int, int, int]],
    parts: tuple[Part, ...],
    granularity: Granularity,
    *,
    grouped: bool = True,
) -> list[Site]:
    """Make the sites for ``parts`` of every layer.

    Args:
        sizes: layer path → (rank, d_in, d_out).
        parts: which tensors are random.
        granularity: for what one draw is shared.
        grouped: make one site for all layers in which a global part has the same shape (fewer sample statements); False
            makes one a layer, so that layers may differ in rank later.
    """
    sites: list[Site] = []
    for part in parts:
        events = {path: part.event(*size) for path, size in sizes.items()}
        if granularity is not Granularity.GLOBAL or not grouped:
            sites += [Site(f"{part.value}.{path}", part, (path,), event, granularity) for path, event in events.items()]
            continue
        groups: dict[tuple[int, ...], list[str]] = {}
        for path, event in events.items():
            groups.setdefault(event, []).append(path)
        for event, paths in groups.items():
            suffix = "global" if len(groups) == 1 else "global." + "x".join(map(str, event))
            sites.append(Site(f"{part.value}.{suffix}", part, tuple(paths), event, granularity))
    return sites
