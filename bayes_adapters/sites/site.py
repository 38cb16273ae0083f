"""The random tensors of an adapter as Pyro sample sites.

A site is described once, by a :class:`Site`; whatever one call adds to it (the layer's low-rank feature, the token
mask, the context) travels in the sample statement's ``infer`` dictionary as a :class:`bayes_adapters.sites.SiteCall`,
where a guide finds it. Nothing is stored on a module between calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from jaxtyping import Bool
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.errors import ConfigError
from bayes_adapters.sites.part import Part


class Granularity(StrEnum):
    """For what one draw is shared."""

    GLOBAL = "global"
    """One draw per layer for the whole data set: a weight. Its KL counts once per data set."""
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
        """The rank r of the site's layers.

        Raises:
            ConfigError: the part has no axis of ranks (a mask, or a fusion's factor).
        """
        if self.part.rank_axis is None:
            kinds = {Part.MASK: "a mask over a layer's input", Part.FACTOR: "a factor of a fusion"}
            raise ConfigError(f"The site {self.name!r} is {kinds.get(self.part, self.part.name)}; it has no rank.")
        return self.event[self.part.rank_axis]

    @property
    def shape(self) -> tuple[int, ...]:
        """``event`` for a local site, (number of layers, *event) for a global one."""
        return (len(self.layers), *self.event) if self.granularity is Granularity.GLOBAL else self.event

    def wrap(self, single: TorchDistributionMixin, mask: Bool[Tensor, "B T"] | None) -> TorchDistributionMixin:
        """Bring a distribution over single draws into the site's plate and event dimensions.

        Prior and posterior both pass through here, so their structures match and Pyro finds the closed-form KL.

        Args:
            single: event shape ``event``; batch shape (L,) for a global site, (*S, B, T) for a token site and
                (*S, B, 1) for a sequence site. Or, of a global site, a distribution that joins its layers: event shape
                (L, *event).
            mask: shape (B, T), True where a token is real; None where nothing is masked.
        """
        return (single if mask is None else single.mask(mask)).to_event(1 + len(self.event) - single.event_dim)


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
            makes one per layer, so that layers may differ in rank later.
    """
    sites: list[Site] = []
    for part in parts:
        events = {path: part.event(*size) for path, size in sizes.items()}
        if granularity is not Granularity.GLOBAL or not grouped:
            sites += [Site(f"{part.name}.{path}", part, (path,), event, granularity) for path, event in events.items()]
            continue
        groups: dict[tuple[int, ...], list[str]] = {}
        for path, event in events.items():
            groups.setdefault(event, []).append(path)
        for event, paths in groups.items():
            suffix = "global" if len(groups) == 1 else "global." + "x".join(map(str, event))
            sites.append(Site(f"{part.name}.{suffix}", part, tuple(paths), event, granularity))
    return sites
