"""How far a context lies from the contexts seen in training, and a posterior that is less sure there.

An amortised posterior is confident wherever its network happens to be, also on recordings unlike any it was trained
on. Here the trust in the context is explicit: a density over frames gives a weight γ in (0, 1], and the posterior
becomes the Gaussian with the moments of the mixture ``γ q + (1 − γ) f``: with probability 1 − γ the network is not to
be believed, and then f is what is left. f is the prior, or a Gaussian as wide as one likes around the posterior's mean:
the first forgets what was heard, the second keeps the best guess and makes its draws disagree.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.batch import Frames
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.handlers import base_distribution


class FrameDensity(nn.Module):
    """K Gaussians over single frames, one for each kind of training context (clean, noisy, …).

    Formula: ``d(a) = min_k mean_s (a_s − m_k)ᵀ C_k⁻¹ (a_s − m_k) / width``, about 1 on training contexts, and
    ``γ(a) = exp(−max(0, d(a) − limit) / tail)``. ``limit`` and ``tail`` are the 95 % quantile of d on held-out contexts
    and its distance to their median, so about 95 % of contexts like those of training keep γ = 1. A missing context has
    γ = 1: what it means is learned, through the guide's null context.

    The distance to a class-conditional Gaussian is the out-of-distribution score of Lee et al. 2018 (arXiv 1807.03888);
    here the classes are kinds of recording. Nothing is trained by gradients: the tensors are buffers.

    Args:
        context_dim: width of a frame.
        components: K.
    """

    means: Float[Tensor, "K d"]
    whitening: Float[Tensor, "K d d"]
    limit: Float[Tensor, ""]
    tail: Float[Tensor, ""]

    def __init__(self, context_dim: int, components: int) -> None:
        super().__init__()
        if components < 1:
            raise ConfigError(f"A frame density needs at least one component; got {components}.")
        self.context_dim, self.components = context_dim, components
        self.register_buffer("means", torch.zeros(components, context_dim))
        self.register_buffer("whitening", torch.eye(context_dim).repeat(components, 1, 1))
        self.register_buffer("limit", torch.tensor(float("inf")))
        self.register_buffer("tail", torch.tensor(1.0))

    @classmethod
    @torch.no_grad()
    def fit(
        cls, groups: Sequence[Float[Tensor, "N d"]], held_out: Sequence[Frames], *, ridge: float = 1e-3
    ) -> FrameDensity:
        """Estimate one Gaussian per group of frames, and the limit on held-out contexts.

        Args:
            groups: for each kind of training context, its frames, shape (N_k, d), N_k ≥ 2.
            held_out: contexts of the same kinds, of examples that are not in ``groups``; at least 20 in all.
            ridge: added to each covariance's diagonal, as a share of its mean.

        Returns:
            The density, float32, on the device of the first group; all groups and contexts must be there.

        Raises:
            DataError: no groups, a group with fewer than two frames, frames that are constant, not finite or of
                different widths, or fewer than 20 held-out contexts.
        """
        if not groups or min(len(g) for g in groups) < 2:
            raise DataError("A frame density needs at least one group, and at least two frames in each.")
        widths = sorted({g.shape[-1] for g in groups} | {frames.values.shape[-1] for frames in held_out})
        if len(widths) != 1:
            raise DataError(f"All frames must have one width; got {widths}. Were they made by different encoders?")
        count = sum(int(frames.present.sum()) for frames in held_out)
        if count < 20:
            raise DataError(f"A 95 % quantile needs at least 20 held-out contexts; got {count}.")
        density = cls(widths[0], len(groups)).to(groups[0].device)
        for k, frames in enumerate(groups):
            density.means[k], density.whitening[k] = _gaussian(frames.double(), ridge, k)
        distances = torch.cat([density.distance(frames)[frames.present] for frames in held_out])
        median, limit = distances.quantile(torch.tensor([0.5, 0.95], device=distances.device)).unbind()
        density.limit.copy_(limit)
        density.tail.copy_((limit - median).clamp_min(1e-6))
        return density

    def distance(self, frames: Frames) -> Float[Tensor, "B"]:
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

    def forward(self, frames: Frames) -> Float[Tensor, "B"]:
        """Return γ(a), shape (B,), in (0, 1]."""
        return torch.exp(-(self.distance(frames) - self.limit).clamp_min(0.0) / self.tail)

    def config(self) -> dict[str, int]:
        """Constructor arguments, as JSON."""
        return {"context_dim": self.context_dim, "components": self.components}


def _gaussian(
    frames: Float[Tensor, "N d"], ridge: float, group: int
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Return the mean m and W with ``(a − m)ᵀ C⁻¹ (a − m) = |(a − m) W|²``, C the ridged covariance."""
    mean, covariance = frames.mean(0), torch.atleast_2d(torch.cov(frames.T))
    unit = torch.eye(len(mean), dtype=frames.dtype, device=frames.device)
    factor, failed = torch.linalg.cholesky_ex(covariance + ridge * covariance.diagonal().mean() * unit)
    if int(failed) or not bool(factor.isfinite().all()):
        raise DataError(
            f"The frames of group {group} have no usable covariance: they are all alike, or hold NaN or infinite "
            "values. Look at these recordings; silent or corrupt ones are the usual cause."
        )
    return mean, torch.linalg.solve_triangular(factor, unit, upper=False).mT


class Fallback(StrEnum):
    """What is left of a posterior whose context cannot be trusted."""

    WIDEN = "widen"
    """f = N(μ_q, s²): the mean stays, the scale grows to s."""
    PRIOR = "prior"
    """f = N(E_p[E], s²): the prior, or one of another scale s."""


def fall_back(
    posterior: TorchDistributionMixin,
    prior: TorchDistributionMixin,
    weight: Float[Tensor, "B"],
    scale: float | None = None,
    mode: Fallback = Fallback.WIDEN,
) -> TorchDistributionMixin:
    """Return the Gaussian with the moments of ``γ q + (1 − γ) f``, for elementwise Gaussians.

    ``μ = γ μ_q + (1−γ) μ_f``, ``σ² = γ σ_q² + (1−γ) s² + γ (1−γ) (μ_q − μ_f)²``.

    Args:
        posterior: q, Gaussian, batch shape (*S, B, T), event shape (r, r).
        prior: Gaussian that broadcasts to the posterior.
        weight: γ, shape (B,).
        scale: s, the standard deviation of f; None takes the prior's.
        mode: whether μ_f is the posterior's mean or the prior's.

    Raises:
        ConfigError: posterior or prior is not Gaussian.
    """
    q, p = base_distribution(posterior), base_distribution(prior)
    if not isinstance(q, torch.distributions.Normal) or not isinstance(p, torch.distributions.Normal):
        raise ConfigError(
            f"Falling back to the prior needs Gaussians; the posterior is {type(q).__name__}, the prior "
            f"{type(p).__name__}. Take a Normal prior, or build the guide without reliability=."
        )
    gamma = weight[:, None, None, None]
    centre = q.loc if mode is Fallback.WIDEN else p.loc
    variance = gamma * q.scale.square() + (1 - gamma) * (p.scale.square() if scale is None else scale**2)
    variance = variance + gamma * (1 - gamma) * (q.loc - centre).square()
    loc = q.loc if mode is Fallback.WIDEN else gamma * q.loc + (1 - gamma) * centre
    return dist.Normal(loc, variance.sqrt(), validate_args=False).to_event(2)
