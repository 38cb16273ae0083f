"""A density over the frames of training contexts, and how far a context lies from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.data.batch import Frames
from bayes_adapters.devices import float64
from bayes_adapters.errors import ConfigError
from bayes_adapters.reliability._checks import check_training_contexts, require_covariance, require_finite_distances

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
    through the guide's null context.

    The constructor makes an unfitted density, whose tensors are about to be loaded; :meth:`fit` makes one to use.

    The distance to a class-conditional Gaussian is the out-of-distribution score of Lee et al. 2018 (arXiv 1807.03888);
    here the classes are kinds of recording. Nothing is trained by gradients: the tensors are buffers.

    Args:
        context_dim: width of a frame.
        components: K.
        two_sided: whether there is a lower limit; adapters saved before there was one have none.

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

    def __init__(self, context_dim: int, components: int, *, two_sided: bool = False) -> None:
        super().__init__()
        if components < 1:
            raise ConfigError(f"A frame density needs at least one component; got {components}.")
        self.context_dim, self.components, self.two_sided = context_dim, components, two_sided
        self.register_buffer("means", torch.zeros(components, context_dim))
        self.register_buffer("whitening", torch.eye(context_dim).repeat(components, 1, 1))
        self.register_buffer("limit", torch.tensor(float("inf")))
        self.register_buffer("tail", torch.tensor(1.0))
        if two_sided:
            self.register_buffer("low", torch.tensor(0.0))
            self.register_buffer("low_tail", torch.tensor(1.0))

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        groups: Sequence[Float[Tensor, "_ d"]],
        held_out: Sequence[Frames],
        *,
        ridge: float = 1e-3,
        quantile: float = 0.95,
        two_sided: bool = True,
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
            two_sided: whether contexts nearer to the means than those of training are distrusted too.

        Returns:
            The density, float32, on the device of the first group; all groups and contexts must be there.

        Raises:
            ConfigError: ``quantile`` is out of range, or a tensor or Frames was given in the place of a list of them.
            DataError: no groups, a group with too few frames, frames that are constant, not finite or of different
                widths, or too few held-out contexts.
        """
        groups, held_out = check_training_contexts(groups, held_out, quantile)
        density = cls(groups[0].shape[-1], len(groups), two_sided=two_sided).to(groups[0].device)
        for k, frames in enumerate(groups):
            density.means[k], density.whitening[k] = _gaussian(float64(frames), ridge, k)
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
        """Return d(a), shape (B,), dimensionless; 0 for a missing context."""
        mask = frames.mask.float()
        count = mask.sum(-1).clamp_min(1.0)
        # masked frames may be of any size: their square could overflow, and 0 · inf is NaN
        values = frames.values.float().masked_fill(~frames.mask[..., None], 0.0)
        per_component = [
            (((values - mean) @ whitening).square().mean(-1) * mask).sum(-1) / count
            for mean, whitening in zip(self.means, self.whitening, strict=True)
        ]
        return torch.stack(per_component).amin(0)

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
        sides = {"two_sided": True} if self.two_sided else {}
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
