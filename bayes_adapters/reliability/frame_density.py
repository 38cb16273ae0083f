"""A density over the frames of training contexts, and how far a context lies from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.data.batch import Frames
from bayes_adapters.devices import float64
from bayes_adapters.errors import ConfigError
from bayes_adapters.reliability import _moments
from bayes_adapters.reliability._checks import (
    check_sides,
    check_training_contexts,
    require_covariance,
    require_finite_distances,
)

_LOW = 0.01
"""The share of contexts like those of training that lie below the lower limit."""


class FrameDensity(nn.Module):
    """K Gaussians over single frames, one for each kind of training context (clean, noisy, …).

    Formula: ``d(a) = min_k mean_s (a_s − m_k)ᵀ C_k⁻¹ (a_s − m_k) / width``, about 1 on training contexts, and
    ``γ(a) = exp(−max(0, d(a) − limit) / tail − max(0, low − d(a)) / low_tail)``. ``limit`` is a quantile (95 %) of d on
    held-out contexts; ``tail`` is the distance of that quantile (of the 95 % one, where a lower limit is asked for) to
    the median. ``low`` is the 1 % quantile and ``low_tail`` its distance to the median: frames that hardly vary (a
    muted recording) lie nearer to the mean than any frame of training, and are as foreign as frames far from it.
    About 94 % of contexts like those of training keep γ = 1. A missing context has γ = 1: what it means is learned,
    through the guide's null context, or said by ``Reliability(missing=…)``.

    d is one number per context: frames that are all the same pass where they lie at the usual distance, and noise that
    shakes them as much as speech does. With ``moments`` the distance is ``½ min_k (u − μ_k)ᵀ Σ⁻¹ (u − μ_k)`` in nats,
    minus the log density, but for a constant, of ``u = log((b, w, v) + 10⁻⁴)`` under N(μ_k, Σ) of the held-out
    contexts of component k. b is how far the mean of the context's frames lies from m_k, w how much they vary about it,
    b + w = d, and v how much neighbours differ (half their mean squared difference), all in units of C_k. Both too
    little and too much of each is far; then γ needs no lower limit. Frames are standardised by C_k, whatever encoder
    made them. A context much longer than those of training has a smaller b, and is unlike them in that.

    The constructor makes an unfitted density, whose tensors are about to be loaded; :meth:`fit` makes one to use.

    The distance to a class-conditional Gaussian is the out-of-distribution score of Lee et al. 2018 (arXiv 1807.03888);
    here the classes are kinds of recording. Nothing is trained by gradients: the tensors are buffers.

    Args:
        context_dim: width of a frame.
        components: K.
        two_sided: whether there is a lower limit; adapters saved before there was one have none.
        moments: whether the distance is that of u rather than d; not with ``two_sided``.

    >>> _ = torch.manual_seed(0)
    >>> def contexts(scale):
    ...     return Frames(scale * torch.randn(40, 25, 8), torch.ones(40, 25, dtype=torch.bool))
    >>> density = FrameDensity.fit([torch.randn(4000, 8)], [contexts(1.0)])
    >>> for scale in (1.0, 5.0, 0.0):
    ...     print(scale, round(float(density(contexts(scale)).median()), 2))
    1.0 1.0
    5.0 0.0
    0.0 0.01
    """

    means: Float[Tensor, "K d"]
    whitening: Float[Tensor, "K d d"]
    limit: Float[Tensor, ""]
    tail: Float[Tensor, ""]
    low: Float[Tensor, ""]
    low_tail: Float[Tensor, ""]
    centres: Float[Tensor, "K 3"]
    root: Float[Tensor, "3 3"]

    def __init__(self, context_dim: int, components: int, *, two_sided: bool = False, moments: bool = False) -> None:
        super().__init__()
        if components < 1:
            raise ConfigError(f"A frame density needs at least one component; got {components}.")
        self.context_dim, self.components = context_dim, components
        self.two_sided, self.moments = two_sided, moments
        self.register_buffer("means", torch.zeros(components, context_dim))
        self.register_buffer("whitening", torch.eye(context_dim).repeat(components, 1, 1))
        self.register_buffer("limit", torch.tensor(float("inf")))
        self.register_buffer("tail", torch.tensor(1.0))
        if two_sided:
            self.register_buffer("low", torch.tensor(0.0))
            self.register_buffer("low_tail", torch.tensor(1.0))
        if moments:
            self.register_buffer("centres", torch.zeros(components, _moments.COUNT))
            self.register_buffer("root", torch.eye(_moments.COUNT))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        groups: Sequence[Float[Tensor, "_ d"]],
        held_out: Sequence[Frames],
        *,
        ridge: float = 1e-3,
        quantile: float = 0.95,
        two_sided: bool | None = None,
        moments: bool = False,
    ) -> FrameDensity:
        """Estimate one Gaussian per group of frames, and the limit on held-out contexts.

        Args:
            groups: for each kind of training context, its frames, shape (N_k, d), N_k > d: fewer span no covariance,
                and the ridge alone would say how far is far.
            held_out: contexts of the same kinds, of examples that are not in ``groups``; at least 20, or
                1 / (1 − quantile) if that is more.
            ridge: added to each covariance's diagonal, as a share of its mean.
            quantile: the share of contexts like ``held_out`` that keep γ = 1, above 0.5 and below 1. A higher one
                distrusts fewer familiar contexts, and unfamiliar ones later.
            two_sided: whether contexts nearer to the means than those of training are distrusted too; None means yes.
            moments: whether distance is that of the context's mean, variance and steps, both sides of each; see above.

        Returns:
            The density, float32, on the device of the first group; all groups and contexts must be there.

        Raises:
            ConfigError: ``quantile`` is out of range, a tensor or Frames was given in the place of a list of them, or
                ``two_sided`` beside ``moments``, which have both sides.
            DataError: no groups, a group with too few frames, frames that are constant, not finite or of different
                widths, or too few held-out contexts.
        """
        groups, held_out = check_training_contexts(groups, held_out, quantile)
        check_sides(two_sided, moments, len(groups), held_out)
        two_sided = two_sided is not False and not moments
        density = cls(groups[0].shape[-1], len(groups), two_sided=two_sided, moments=moments).to(groups[0].device)
        for k, frames in enumerate(groups):
            density.means[k], density.whitening[k] = _gaussian(float64(frames), ridge, k)
        if moments:
            u, d = (torch.cat(parts) for parts in zip(*(density._looked_at(f) for f in held_out), strict=True))
            require_finite_distances(u.flatten(1).sum(1))
            centres, root, distances = _moments.density_of(u, d.argmin(1))
            density.centres.copy_(centres)
            density.root.copy_(root)
            distances = distances.float()
        else:
            distances = torch.cat([density.distance(frames)[frames.present] for frames in held_out])
        require_finite_distances(distances)
        far = max(quantile, 0.95)
        levels = torch.tensor([_LOW, 0.5, quantile, far], device=distances.device)
        low, median, limit, edge = distances.quantile(levels).unbind()
        density.limit.copy_(limit)
        density.tail.copy_((edge - median).clamp_min(1e-6))
        if two_sided:
            density.low.copy_(low)
            density.low_tail.copy_((median - low).clamp_min(1e-6))
        return density

    def distance(self, frames: Frames) -> Float[Tensor, " B"]:
        """Return d(a), dimensionless, or with ``moments`` the distance in nats; shape (B,), 0 for a missing context."""
        if self.moments:
            squared = ((self._log_moments(frames) - self.centres) @ self.root).square().sum(-1)
            distance = 0.5 * torch.nan_to_num(squared, nan=torch.inf, posinf=torch.inf).amin(1)  # inf − inf: far away
            return distance.masked_fill(~frames.present, 0.0)
        return self._mean_distances(frames).amin(1)

    def _mean_distances(self, frames: Frames) -> Float[Tensor, "B K"]:
        """Return d under each component; infinite where frames are not finite, as for :meth:`distance`."""
        mask = frames.mask.float()
        count = mask.sum(-1).clamp_min(1.0)
        per_component = [(y.square().mean(-1) * mask).sum(-1) / count for y in self._whitened(frames)]
        return torch.stack(per_component, -1).nan_to_num(nan=torch.inf, posinf=torch.inf)

    def _whitened(self, frames: Frames) -> Iterator[Float[Tensor, "B S d"]]:
        """Yield the frames in each component's units."""
        # masked frames may be of any size: their square could overflow, and 0 · inf is NaN
        values = frames.values.float().masked_fill(~frames.mask[..., None], 0.0)
        for mean, whitening in zip(self.means, self.whitening, strict=True):
            yield (values - mean) @ whitening

    def _log_moments(self, frames: Frames) -> Float[Tensor, "B K 3"]:
        return torch.stack([_moments.log_moments(y, frames.mask) for y in self._whitened(frames)], 1)

    def _looked_at(self, frames: Frames) -> tuple[Float[Tensor, "n K 3"], Float[Tensor, "n K"]]:
        """Return u and d of the contexts that are there."""
        return self._log_moments(frames)[frames.present], self._mean_distances(frames)[frames.present]

    def forward(self, frames: Frames) -> Float[Tensor, " B"]:
        """Return γ(a), shape (B,), in [0, 1]; it is 0 where the exponential underflows.

        Raises:
            ConfigError: the density is not fitted.
        """
        if bool(self.limit.isinf()):
            raise ConfigError(
                "The frame density is not fitted, so it would trust every context. Make it with FrameDensity.fit, or "
                "load an adapter that was saved with one."
            )
        distance = self.distance(frames)
        beyond = (distance - self.limit).clamp_min(0.0) / self.tail
        if self.two_sided:
            short = (self.low - distance).clamp_min(0.0) / self.low_tail
            beyond = beyond + short.masked_fill(~frames.present, 0.0)  # a missing context has distance 0
        return torch.exp(-beyond)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as JSON."""
        sides = {name: True for name in ("two_sided", "moments") if getattr(self, name)}
        return {"context_dim": self.context_dim, "components": self.components, **sides}


def _gaussian(
    frames: Float[Tensor, "N d"], ridge: float, group: int
) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Return the mean m and W with ``(a − m)ᵀ C⁻¹ (a − m) = |(a − m) W|²``, C the ridged covariance."""
    mean, covariance = frames.mean(0), torch.atleast_2d(torch.cov(frames.T))
    unit = torch.eye(len(mean), dtype=frames.dtype, device=frames.device)
    factor, failed = torch.linalg.cholesky_ex(covariance + ridge * covariance.diagonal().mean() * unit)
    require_covariance(factor, int(failed), group)
    return mean, torch.linalg.solve_triangular(factor, unit, upper=False).mT
