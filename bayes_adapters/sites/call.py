"""What one call of a site carries to the guide, and what the guide says back."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.data.batch import Frames
from bayes_adapters.errors import ConfigError
from bayes_adapters.sites.site import Site
from bayes_adapters.sites.summary import Summary

OF_WEIGHTS = "of_weights"
"""The key, in a sample statement's ``infer`` dictionary, of noise that examples have each their own of and that is yet
part of a draw of weights: the values of a random function at them. Other noise of examples is local."""
SITE = "site"
"""The key of the :class:`SiteCall` in a sample statement's ``infer`` dictionary."""

_T = TypeVar("_T")


class Memo:
    """What a guide computes once in a pass for all of its sites: keys and values of the frames, say.

    It lives as long as one pass through the backbone, so nothing is stored on a module between calls.

    >>> memo, guide = Memo(), object()
    >>> memo.once(guide, "keys", lambda: [1.0]) is memo.once(guide, "keys", lambda: [2.0])
    True
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Hashable, str], Any] = {}

    def once(self, owner: Hashable, what: str, make: Callable[[], _T]) -> _T:
        """Return what the first call with this key made.

        Args:
            owner: who keeps it: a guide, a part of one, or a site; no two owners share a value.
            what: which of the owner's values.
            make: computes it; called at most once in a pass.
        """
        key = (owner, what)
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]

    def copy(self) -> Memo:
        """Return a memo that knows what this one knows by now."""
        twin = Memo()
        twin._values = dict(self._values)
        return twin

    @contextmanager
    def rewound(self, earlier: Memo) -> Iterator[None]:
        """Within the context this memo knows what ``earlier`` knows, and forgets what it learns meanwhile."""
        now, self._values = self._values, dict(earlier._values)
        try:
            yield
        finally:
            self._values = now


@dataclass(eq=False)
class SiteCall:
    """What a guide may use to infer one site in one forward pass, and what it says of the posterior besides its draw.

    Args:
        site: the site.
        feature: what the drawn tensor acts or depends on: this layer's low-rank feature z = A x, shape (*S, B, T, r),
            for a core; the layer's input, shape (*S, B, T, d_in), for a mask; the other modality's descriptor, shape
            (*S, B, 1, d_c), for the core of a path between modalities. Sequence sites get its mean over real tokens,
            shape (*S, B, 1, k). None for global sites. ``*S`` are the sizes of sample plates around the model.
        token_mask: shape (B, T), or None where there is no padding, as in global sites; shape (B, 1) in a sequence site
            whose draw has no effect for some examples.
        context: modality → frames, shape (B, F, d); a modality that is absent is missing for the whole batch.
        first: shape (B,), int64, of token sites: the number of each example's first token in this pass, where earlier
            passes have seen those before it; None is 0.
        num_sites: number of sites of the model.
        memo: shared by all sites of the pass.
        mean: said by the guide of a global site: the posterior's mean, shape ``site.shape``, where flipout or local
            reparametrisation needs it.
        scale: said by the guide of a global site that asks for local reparametrisation: the posterior's standard
            deviation, shape ``site.shape``; the layer then draws its outputs, not the weight.
        moments: said by a posterior of a global site that is not to be drawn: itself, over (L, *event). The layer then
            computes with its mean and variance.
        point: said with ``scale`` or ``moments``: the tensor in the draw's place, the posterior's mean. A value other
            than this one was conditioned on.
        watch: said by whoever wants to see what the drawn matrix W of a layer is multiplied with: called with the
            number of the layer, x and W x, once for each time that the layer runs.
        posterior: said by the guide of a head's own weights: q of one draw, event shape ``site.event``. None where the
            model runs without a guide of this library, or the site is conditioned on.
        summary: of a local site that will run again in backward: what the guide says in the place of its record.
    """

    site: Site
    feature: Float[Tensor, "*S B T k"] | None = None
    token_mask: Bool[Tensor, "B T"] | None = None
    context: Mapping[str, Frames] = field(default_factory=dict)
    num_sites: int = 1
    memo: Memo = field(default_factory=Memo)
    mean: Float[Tensor, "*shape"] | None = None
    scale: Float[Tensor, "*shape"] | None = None
    moments: TorchDistributionMixin | None = None
    point: Float[Tensor, "*S *shape"] | None = None
    posterior: TorchDistributionMixin | None = None
    watch: Callable[[int, Tensor, Tensor], None] | None = None
    first: Int[Tensor, " B"] | None = None
    summary: Summary | None = None

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
