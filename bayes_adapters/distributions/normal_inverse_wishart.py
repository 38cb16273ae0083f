"""A matrix of weights and the covariance of their noise together: the conjugate family of linear regression."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl


class MatrixNormalInverseWishart(TorchDistribution):
    """``Σ ~ InverseWishart(Ψ, ν)``, ``W | Σ ~ MN(M, Σ, V)``: K outputs, D inputs, a value ``[W, chol Σ]``.

    Density of Σ ∝ |Σ|^(−(ν+K+1)/2) exp(−½ tr Ψ Σ⁻¹), and ``Cov(W_ki, W_lj | Σ) = Σ_kl V_ij``. Of one output it is
    ``σ² ~ InverseGamma(ν/2, Ψ/2)``, ``w | σ² ~ N(m, σ² V)``. Moments::

        E Σ = Ψ / (ν − K − 1)      E Σ⁻¹ = ν Ψ⁻¹      E log |Σ| = log |Ψ| − K log 2 − Σ_k ψ((ν + 1 − k) / 2)

    KL, nats, from ``q = (M, V, Ψ, ν)`` to ``p = (M₀, V₀, Ψ₀, ν₀)``, the first line of W given Σ::

        ½ [ K tr(V₀⁻¹ V) + ν tr(Ψ⁻¹ (M − M₀) V₀⁻¹ (M − M₀)ᵀ) − K D + K log |V₀| − K log |V| ]
        + ½ [ ν₀ (log |Ψ| − log |Ψ₀|) + ν tr(Ψ₀ Ψ⁻¹) − ν K + (ν − ν₀) Σ_k ψ((ν + 1 − k) / 2) ]
        + log Γ_K(ν₀ / 2) − log Γ_K(ν / 2)

    Source: Murphy 2012, "Machine learning", sections 4.6 and 7.6; for neural networks Harrison et al. 2024,
    arXiv 2404.11599.

    Args:
        loc: M, shape (*batch, K, D).
        columns: the Cholesky factor of V, shape (*batch, D, D).
        spread: the Cholesky factor of Ψ, shape (*batch, K, K).
        df: ν > K − 1, shape (*batch).

    >>> q = MatrixNormalInverseWishart(torch.zeros(2, 3), torch.eye(3), torch.eye(2), torch.tensor(5.0))
    >>> q.event_shape, q.noise
    (torch.Size([2, 5]), tensor([[0.5000, 0.0000],
            [0.0000, 0.5000]]))
    """

    arg_constraints = {
        "loc": constraints.independent(constraints.real, 2),
        "columns": constraints.lower_cholesky,
        "spread": constraints.lower_cholesky,
        "df": constraints.positive,
    }
    support = constraints.dependent(
        is_discrete=False, event_dim=2
    )  # the second part is a Cholesky factor: no bijection
    has_rsample = True

    def __init__(
        self,
        loc: Float[Tensor, "*batch K D"],
        columns: Float[Tensor, "*batch D D"],
        spread: Float[Tensor, "*batch K K"],
        df: Float[Tensor, "*batch"],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.columns, self.spread, self.df = loc, columns, spread, df
        *batch, outputs, width = loc.shape
        super().__init__(torch.Size(batch), torch.Size((outputs, width + outputs)), validate_args=validate_args)

    @property
    def outputs(self) -> int:
        """K."""
        return self.loc.shape[-2]

    @property
    def noise(self) -> Float[Tensor, "*batch K K"]:
        """E Σ; it is finite where ν > K + 1."""
        return self.spread @ self.spread.mT / (self.df - self.outputs - 1)[..., None, None]

    @property
    def mean(self) -> Float[Tensor, "*batch K n"]:
        """[M, the Cholesky factor of E Σ]."""
        return torch.cat([self.loc, self.spread / (self.df - self.outputs - 1).sqrt()[..., None, None]], -1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MatrixNormalInverseWishart:
        """Return the same with another batch shape."""
        shape = torch.Size(batch_shape)
        loc, columns, spread = (part.expand(shape + part.shape[-2:]) for part in (self.loc, self.columns, self.spread))
        return MatrixNormalInverseWishart(loc, columns, spread, self.df.expand(shape), validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Float[Tensor, "*S K n"]:
        """Draw Σ and W given it.

        With ``Ψ = L Lᵀ`` and Bartlett's T, lower triangular, T_ii² ~ χ²(ν − i + 1) and T_ij ~ N(0, 1) below, it is
        ``Σ = L (T Tᵀ)⁻¹ Lᵀ``.
        """
        shape = torch.Size(sample_shape) + self.batch_shape
        steps = torch.arange(self.outputs, dtype=self.df.dtype, device=self.df.device)
        chi2 = torch.distributions.Chi2((self.df[..., None] - steps).expand(*shape, -1), validate_args=False)
        bartlett = torch.randn(*shape, self.outputs, self.outputs, dtype=self.loc.dtype, device=self.loc.device).tril(
            -1
        )
        bartlett = bartlett + torch.diag_embed(chi2.rsample().sqrt())
        root = torch.linalg.solve_triangular(bartlett, self.spread.mT.expand(bartlett.shape), upper=False)
        noise = torch.linalg.cholesky(root.mT @ root)
        standard = torch.randn(shape + self.loc.shape[-2:], dtype=self.loc.dtype, device=self.loc.device)
        return torch.cat([self.loc + noise @ standard @ self.columns.mT, noise], -1)

    def log_prob(self, value: Float[Tensor, "*S K n"]) -> Float[Tensor, "*S"]:
        """Return the log density of (W, Σ), nats; of Σ, not of the Cholesky factor in ``value``."""
        outputs, width = self.loc.shape[-2:]
        weight, noise = value[..., :width], value[..., width:]
        log_noise, log_columns = _half_log_det(noise), _half_log_det(self.columns)
        rest = torch.linalg.solve_triangular(noise, weight - self.loc, upper=False)
        rest = torch.linalg.solve_triangular(self.columns, rest.mT, upper=False)
        of_weight = -0.5 * rest.square().sum((-2, -1)) - width * log_noise - outputs * log_columns
        root = torch.linalg.solve_triangular(noise, self.spread.expand(noise.shape), upper=False)
        of_noise = self.df * (_half_log_det(self.spread) - 0.5 * outputs * math.log(2.0))
        of_noise = of_noise - torch.special.multigammaln(0.5 * self.df, outputs) - (self.df + outputs + 1) * log_noise
        of_noise = of_noise - 0.5 * root.square().sum((-2, -1))
        return of_weight - 0.5 * outputs * width * math.log(2 * math.pi) + of_noise


def digammas(df: Float[Tensor, "*batch"], outputs: int) -> Float[Tensor, "*batch"]:
    """Return ``Σ_k ψ((ν + 1 − k) / 2)``, k = 1 … K."""
    steps = torch.arange(outputs, dtype=df.dtype, device=df.device)
    return torch.digamma(0.5 * (df[..., None] - steps)).sum(-1)


def _half_log_det(lower: Tensor) -> Tensor:
    return lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)


@register_kl(MatrixNormalInverseWishart, MatrixNormalInverseWishart)  # type: ignore[untyped-decorator]
def _kl(q: MatrixNormalInverseWishart, p: MatrixNormalInverseWishart) -> Tensor:
    outputs, width = q.loc.shape[-2:]
    shared = torch.linalg.solve_triangular(
        p.columns, q.columns.expand(torch.broadcast_shapes(q.columns.shape, p.columns.shape)), upper=False
    )
    off = torch.linalg.solve_triangular(q.spread, q.loc - p.loc, upper=False)
    off = torch.linalg.solve_triangular(p.columns, off.mT, upper=False)
    of_weight = outputs * shared.square().sum((-2, -1)) + q.df * off.square().sum((-2, -1)) - outputs * width
    of_weight = of_weight + 2.0 * outputs * (_half_log_det(p.columns) - _half_log_det(q.columns))
    root = torch.linalg.solve_triangular(
        q.spread, p.spread.expand(torch.broadcast_shapes(q.spread.shape, p.spread.shape)), upper=False
    )
    of_noise = 2.0 * p.df * (_half_log_det(q.spread) - _half_log_det(p.spread)) + q.df * root.square().sum((-2, -1))
    of_noise = of_noise - q.df * outputs + (q.df - p.df) * digammas(q.df, outputs)
    of_noise = 0.5 * of_noise + torch.special.multigammaln(0.5 * p.df, outputs)
    return 0.5 * of_weight + of_noise - torch.special.multigammaln(0.5 * q.df, outputs)
