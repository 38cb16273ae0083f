"""``ShrunkNormal``: a Gaussian over all weights of an adapter, told by a few directions of its precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal, constraints
from torch.distributions.kl import register_kl

Block = tuple[slice, Float[Tensor, "_ _"], Float[Tensor, " _"]]
"""Which entries, k orthonormal directions among them, and c, by how much draws are narrower along each."""


class ShrunkNormal(TorchDistribution):
    """``w = m + S (ε + Σ_b U_b (diag(c_b) − I) U_bᵀ ε_b)``, ε ~ N(0, I): narrower along a few directions.

    S is a diagonal of standard deviations, and the k columns of U_b are orthonormal directions among the entries of
    block b; blocks share no entry. Then::

        Cov(w)   = S (I − U diag(1 − c²) Uᵀ) S
        log p(w) = −½ ‖z + U (diag(1/c) − I) Uᵀ z‖² − log |S| − Σ log c − ½ D log 2π,   z = S⁻¹ (w − m)

    A posterior precision ``S⁻² + S⁻¹ U diag(1/c² − 1) Uᵀ S⁻¹`` is a prior's plus the curvature of
    a few directions, which no sum of a diagonal and a factor can be the inverse of. It is stored in D k numbers.

    Args:
        loc: m, shape (*batch, D).
        scale: the diagonal of S, positive, shape (D,).
        blocks: see :data:`Block`; c in (0, 1]. None at all is a Gaussian with independent entries.

    >>> first = (slice(0, 2), torch.tensor([[1.0], [0.0]]), torch.tensor([0.5]))
    >>> half = ShrunkNormal(torch.zeros(2), torch.ones(2), [first])
    >>> half.covariance_matrix
    tensor([[0.2500, 0.0000],
            [0.0000, 1.0000]])
    """

    arg_constraints = {"loc": constraints.real_vector, "scale": constraints.independent(constraints.positive, 1)}
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, scale: Tensor, blocks: Sequence[Block] = (), *, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale, self.blocks = loc, scale, tuple(blocks)
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """M."""
        return self.loc

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """Of each entry."""
        kept = torch.ones_like(self.scale)
        for place, directions, shrink in self.blocks:
            kept[place] = kept[place] - directions.square() @ (1.0 - shrink.square())
        return (self.scale.square() * kept).expand(self.loc.shape)

    @property
    def covariance_matrix(self) -> Float[Tensor, "D D"]:
        """D² numbers, for small D."""
        whole = torch.eye(len(self.scale), dtype=self.scale.dtype, device=self.scale.device)
        for place, directions, shrink in self.blocks:
            whole[place, place] -= (directions * (1.0 - shrink.square())) @ directions.mT
        return self.scale[:, None] * whole * self.scale

    def expand(self, batch_shape: Any, _instance: Any = None) -> ShrunkNormal:
        """Return the same with another batch shape."""
        loc = self.loc.expand(torch.Size(batch_shape) + self.loc.shape[-1:])
        return ShrunkNormal(loc, self.scale, self.blocks, validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw w."""
        shape = self.shape(torch.Size(sample_shape))
        return self.from_noise(torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def from_noise(self, noise: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D"]:
        """Return w for ε, which are independent standard normal numbers."""
        return self.loc + self.scale * self._along(noise, lambda shrink: shrink)

    def projected(self, rows: Float[Tensor, "*S D"]) -> Float[Tensor, "*S D"]:
        """Return ``Tᵀ v`` for each row v, where w = m + T ε: ``Cov(v·w, v'·w)`` is the product of two of them."""
        return self._along(self.scale * rows, lambda shrink: shrink)

    def from_uniforms(self, shape: Any, uniforms: Callable[[int], Tensor]) -> Tensor:
        """Return draws of this ``shape``; ``uniforms(n)`` has n of them for each of its two leading entries."""
        return self.from_noise(torch.special.ndtri(uniforms(math.prod(shape[2:]))).reshape(shape))

    def log_prob(self, value: Float[Tensor, "*S D"]) -> Float[Tensor, "*S"]:
        """Return the log density, nats."""
        noise = self._along((value - self.loc) / self.scale, lambda shrink: 1.0 / shrink)
        return -0.5 * noise.square().sum(-1) - self._half_log_det() - 0.5 * len(self.scale) * math.log(2 * math.pi)

    def entropy(self) -> Float[Tensor, "*batch"]:
        """Return the entropy, nats."""
        whole = self._half_log_det() + 0.5 * len(self.scale) * (1.0 + math.log(2 * math.pi))
        return whole.expand(self.batch_shape)

    def _half_log_det(self) -> Tensor:
        """½ log det Cov(w)."""
        shrunk = [shrink.log().sum() for _, _, shrink in self.blocks]
        return self.scale.log().sum() + sum(shrunk, self.scale.new_zeros(()))

    def _along(self, value: Tensor, factor: Callable[[Tensor], Tensor]) -> Tensor:
        """Multiply ``value`` along each direction by a function of its c; across all of them it stays."""
        result = value.clone() if self.blocks else value
        for place, directions, shrink in self.blocks:
            along = value[..., place] @ directions
            result[..., place] = result[..., place] + (along * (factor(shrink) - 1.0)) @ directions.mT
        return result


@register_kl(ShrunkNormal, Independent)  # type: ignore[untyped-decorator]
def _kl_shrunk_normal(q: ShrunkNormal, p: Any) -> Tensor:
    """KL to independent Gaussians: ``½ Σ_i [(v_i + (m_i − μ_i)²) / σ_i² + log σ_i² − 1] − ½ log det Cov``."""
    base = p.base_dist
    if not isinstance(base, Normal) or p.reinterpreted_batch_ndims != 1 or len(p.event_shape) != 1:
        raise NotImplementedError
    spread = (q.variance + (q.loc - base.loc).square()) / base.scale.square()
    return 0.5 * (spread + 2.0 * base.scale.log() - 1.0).sum(-1) - q._half_log_det()
