"""What scores targets under conjugate outputs: E log N(y; f, Σ) in closed form, and Student's t as the predictive."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayes_adapters.likelihoods.gaussian_outputs import ConjugateOutputs


class ConjugateNormal(TorchDistribution):
    """``y | f, Σ ~ N(f, Σ)``, ``f | Σ ~ N(m, h Σ)``, ``Σ ~ InverseWishart(Ψ, ν)``, for K numbers of an example.

    ``log_prob`` is what training maximises, and :meth:`predictive` what is predicted, both exact; with r = y − m::

        E log p(y | f, Σ) = −½ [ K log 2π + log |Ψ| − K log 2 − Σ_k ψ((ν + 1 − k) / 2) + ν rᵀ Ψ⁻¹ r + K h ]
        p(y) = t(y; ν − K + 1, m, Ψ (1 + h) / (ν − K + 1))

    Numbers that are NaN in the data are not known: of the k others Σ is InverseWishart of their block of Ψ and
    ν − (K − k), and the sums are theirs.

    Args:
        loc: m, shape (*batch, K), in units of the targets.
        leverage: h ≥ 0, shape (*batch).
        spread: the Cholesky factor of Ψ, shape (K, K), in units of the targets.
        df: ν > K + 1, shape (); None where Σ is known, and is Ψ.
        single: whether K = 1 and targets have no axis for it.
        predicts: whether ``log_prob`` is that of p(y).
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real

    def __init__(
        self,
        loc: Float[Tensor, "*batch K"],
        leverage: Float[Tensor, "*batch"],
        spread: Float[Tensor, "K K"],
        df: Float[Tensor, ""] | None,
        *,
        single: bool,
        predicts: bool = False,
    ) -> None:
        self.centre, self.leverage, self.cholesky, self.df = loc, leverage, spread, df
        self.single, self.predicts = single, predicts
        event = torch.Size() if single else loc.shape[-1:]
        super().__init__(loc.shape[:-1], event, validate_args=False)

    @property
    def loc(self) -> Tensor:
        """m, shape (*batch) where there is one number, else (*batch, K)."""
        return self._shown(self.centre)

    @property
    def mean(self) -> Tensor:
        """M."""
        return self.loc

    @property
    def scale(self) -> Tensor:
        """√(E Σ_kk): the standard deviation of the noise."""
        return self._shown(self._noise().sqrt().expand(self.centre.shape))

    @property
    def spread(self) -> Tensor:
        """``h E Σ_kk``: the variance of f_k."""
        return self._shown(self._noise() * self.leverage[..., None])

    def predictive(self) -> ConjugateNormal:
        """Return p(y)."""
        given = (self.centre, self.leverage, self.cholesky, self.df)
        return ConjugateNormal(*given, single=self.single, predicts=True)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ConjugateNormal:
        """Return the same with another batch shape."""
        shape = torch.Size(batch_shape)
        loc, leverage = self.centre.expand(shape + self.centre.shape[-1:]), self.leverage.expand(shape)
        given = (loc, leverage, self.cholesky, self.df)
        return ConjugateNormal(*given, single=self.single, predicts=self.predicts)

    def log_prob(self, value: Tensor) -> Float[Tensor, "*batch"]:
        """Return the expected log density, or log p(y), of the numbers that are known; nats."""
        rest = (value[..., None] if self.single else value) - self.centre
        known = ~rest.isnan()
        both = known[..., None] & known[..., None, :]
        full = self.cholesky @ self.cholesky.mT
        block = torch.where(both, full, torch.zeros_like(full)) + torch.diag_embed((~known).to(full))
        lower = torch.linalg.cholesky(block)
        rest = torch.where(known, rest, 0.0).to(full)
        square = torch.linalg.solve_triangular(lower, rest[..., None], upper=False).square().sum((-2, -1))
        log_det = 2.0 * lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        number, h = known.sum(-1), self.leverage
        count = number.to(full)
        if self.df is None:
            return -0.5 * (count * math.log(2 * math.pi) + log_det + square)
        least = self.df - self.centre.shape[-1]  # ν̃ − k, whatever is known
        if self.predicts:
            half = 0.5 * (least + 1.0)
            found = torch.lgamma(half + 0.5 * count) - torch.lgamma(half) - 0.5 * count * (math.pi * (1.0 + h)).log()
            return found - 0.5 * log_det - (half + 0.5 * count) * torch.log1p(square / (1.0 + h))
        steps = torch.digamma(0.5 * (least + torch.arange(1, rest.shape[-1] + 1).to(full))).cumsum(-1)
        digammas = torch.cat([steps.new_zeros(1), steps])[number]
        return -0.5 * (count * (math.log(math.pi) + h) + log_det - digammas + (least + count) * square)

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Draw a target from p(y)."""
        shape = torch.Size(sample_shape or ())
        normal = dist.MultivariateNormal(torch.zeros_like(self.centre), scale_tril=self.cholesky).sample(shape)
        if self.df is None:
            return self._shown(self.centre + normal)
        df = self.df - self.centre.shape[-1] + 1.0
        chi2 = dist.Chi2(df.expand(normal.shape[:-1])).sample()[..., None]
        return self._shown(self.centre + normal * ((1.0 + self.leverage)[..., None] / chi2).sqrt())

    def _noise(self) -> Float[Tensor, " K"]:
        variance = self.cholesky.square().sum(-1)
        return variance if self.df is None else variance / (self.df - self.centre.shape[-1] - 1.0)

    def _shown(self, value: Tensor) -> Tensor:
        return value[..., 0] if self.single else value


def conjugate(outputs: ConjugateOutputs, centre: Tensor, unit: Tensor, *, single: bool) -> ConjugateNormal:
    """Return the score of targets whose mean and unit, shape (K), are given."""
    loc, spread = centre + unit * outputs.mean, unit[:, None] * outputs.spread
    return ConjugateNormal(loc, outputs.leverage, spread, outputs.df, single=single)
