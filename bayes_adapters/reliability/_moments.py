"""Three numbers that say how a context's frames lie in a Gaussian, and the density of these over contexts."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayes_adapters.devices import float64

COUNT = 3
"""How many numbers there are."""
_LEAST = 1e-4
"""Added to each before its logarithm: frames that vary by less, in units of those of training, do not vary."""
_COMMON = 0.05
"""A deviation of a logarithm that is never remarkable: 5 %."""


def moments(
    y: Float[Tensor, "B S d"], mask: Bool[Tensor, "B S"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"], Float[Tensor, " B"]]:
    """Return b, w and v of the real frames y_s of each context, dimensionless; zeros where it has none.

    ``b = |ȳ|² / d`` says how far their mean lies, ``w = mean_s |y_s − ȳ|² / d`` how much they vary, and
    ``v = mean_s |y_{s+1} − y_s|² / (2 d)`` how much neighbours differ. b + w is the mean of |y_s|² / d. Of one frame
    w = 0, and v = w where no two real frames are neighbours. For independent frames from N(0, I) the means of b, w and
    v are 1/S, 1 − 1/S and 1.

    Args:
        y: whitened frames, anything finite where masked.
        mask: True where a frame is real.
    """
    weight = mask.to(y.dtype)
    count = weight.sum(-1).clamp_min(1.0)
    mean = (y * weight[..., None]).sum(1) / count[:, None]
    within = ((y - mean[:, None]).square().mean(-1) * weight).sum(-1) / count
    both = weight[:, 1:] * weight[:, :-1]
    step = (y.diff(dim=1).square().mean(-1) * both).sum(-1) / (2 * both.sum(-1).clamp_min(1.0))
    return mean.square().mean(-1), within, torch.where(both.any(-1), step, within)


def log_moments(y: Float[Tensor, "B S d"], mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B 3"]:
    """Return ``u = log((b, w, v) + 1e-4)``."""
    return (torch.stack(moments(y, mask), -1) + _LEAST).log()


def density_of(
    u: Float[Tensor, "N K 3"], owner: Int[Tensor, " N"]
) -> tuple[Float[Tensor, "K 3"], Float[Tensor, "3 3"], Float[Tensor, " N"]]:
    """Estimate ``u_k ~ N(μ_k, Σ)`` from the contexts of each component k.

    ``Σ = Σ_i r_i r_iᵀ / (N − K) + 0.05² I`` over all residuals r_i from the own component's mean. A component with
    fewer than two contexts takes the mean of all.

    Args:
        u: of N contexts under each of K components.
        owner: the component of each.

    Returns:
        μ, shape (K, 3); W with ``(u − μ)ᵀ Σ⁻¹ (u − μ) = |(u − μ) W|²``, shape (3, 3); and of each context
        ``½ min_k (u − μ_k)ᵀ Σ⁻¹ (u − μ_k)``, nats, shape (N,), for the own component as if it had been left out of μ
        and Σ: a context is nearer to an estimate that it is part of.
    """
    u = float64(u)
    components = u.shape[1]
    own = torch.nn.functional.one_hot(owner, components).to(u.dtype)
    count = own.sum(0)
    mean = torch.einsum("nk,nkc->kc", own, u) / count.clamp_min(1.0)[:, None]
    known = count >= 2
    mean = torch.where(known[:, None], mean, u.mean(0))
    rows = torch.arange(len(u), device=u.device)
    residual = u[rows, owner] - mean[owner]
    free = max(len(u) - int(known.sum()), 2)
    scatter = residual.mT @ residual + free * _COMMON**2 * torch.eye(COUNT, dtype=u.dtype, device=u.device)
    factor = torch.linalg.cholesky(scatter / free)
    root = torch.linalg.solve_triangular(factor, torch.eye(COUNT, dtype=u.dtype, device=u.device), upper=False).mT
    squared = ((u - mean) @ root).square().sum(-1)
    squared[rows, owner] = _left_out(squared[rows, owner], torch.where(known, count, float(len(u)))[owner], free)
    return mean, root, 0.5 * squared.amin(1)


def _left_out(squared: Float[Tensor, " N"], count: Float[Tensor, " N"], free: int) -> Float[Tensor, " N"]:
    """Return the squared distance to a mean and covariance that were estimated without the context itself.

    Without r the scatter is ``A − n/(n−1) r rᵀ`` and the mean n/(n−1) as far away; with ``q = rᵀ A⁻¹ r`` Sherman and
    Morrison's formula gives ``(free − 1) (n/(n−1))² q / (1 − n q/(n−1))``.
    """
    q, grown = squared / free, count / (count - 1).clamp_min(1.0)
    return (free - 1) * grown.square() * q / (1 - grown * q).clamp_min(1e-9)
