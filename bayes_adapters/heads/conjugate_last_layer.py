"""A linear head for numbers whose weights and noise are inferred together, in closed form."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.adapters.moments import Moments
from bayes_adapters.devices import fp32
from bayes_adapters.distributions import MatrixNormalInverseWishart, base_distribution
from bayes_adapters.errors import ConfigError, choice
from bayes_adapters.heads._augmented import augmented, augmented_start, read_scales
from bayes_adapters.heads._checks import require_numbers
from bayes_adapters.heads.covariance import Covariance
from bayes_adapters.heads.head import Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.posterior import HeadPosterior
from bayes_adapters.likelihoods import ConjugateOutputs, Likelihood
from bayes_adapters.sites import Granularity, Part, Site, SiteCall

JOINT = "head.weight_and_noise"


class ConjugateLastLayer(Head):
    """``y ~ N(W φ, Σ)``, φ = [pool(h) ; √d], with a posterior over W and Σ together: K numbers whose noise correlates.

    Prior ``Σ ~ InverseWishart((a) b² I, K + 1 + a)``, of mean b² I, and ``W | Σ ~ MN(0, Σ, s₀²/d I)``. Posterior
    ``q(W, Σ) = MN(W; M, Σ, V) InverseWishart(Σ; Ψ, ν)``, the family that the exact one is in where φ is fixed. For one
    number (``Gaussian``) Σ is a variance with an inverse-gamma prior, ``InverseGamma(1 + a/2, a b²/2)``. With
    r = y − M φ and h = φᵀ V φ::

        E_q log p(y | x) = −½ [ K log π + log |Ψ| − Σ_k ψ((ν + 1 − k) / 2) + ν rᵀ Ψ⁻¹ r + K h ]
        p(y | x) = t(y; ν − K + 1, M φ, Ψ (1 + h) / (ν − K + 1))

    both exact and without draws, and one KL(q ‖ p) per data set, so the model needs ``num_data``. Where ε of
    :class:`VariationalLastLayer` has a point for σ², here it has a posterior, so that intervals are Student's t: wider
    where there are few data. ``log_density`` is that of p(y | x), of several numbers jointly; mean, variance and
    uncertainties are those of a Gaussian with its moments (variance Ψ_kk (1 + h) / (ν − K − 1)). The noise is the
    head's: ``likelihood.log_scale`` stands still, in the unit of f, which is the likelihood's ``target_scale``.

    Numbers of ``MultiGaussian`` that are not known (NaN) are left out exactly. The head stands beside any guide of the
    adapters; where that draws, the loss is the bound per draw, averaged. It is for guides of this library: Pyro's own
    know no bijection onto covariances.

    Args:
        covariance: V, ``"diagonal"`` or ``"dense"``.
        prior_scale: s₀ > 0, in units of the noise's standard deviation.
        init_scale: the standard deviation of an entry of W at the start, as a part of the prior's.
        noise_scale: b > 0: the standard deviation that the prior expects of the noise, in the unit of f.
        noise_weight: a > 0: as how many examples the prior of the noise counts.
        pooling: see :class:`Pooling`; None is the mean.

    Raises:
        ConfigError: an option out of range, or a likelihood other than ``Gaussian`` and ``MultiGaussian``.

    Source: the noise of Harrison, Willes and Snoek 2024, arXiv 2404.11599, section 3.1, integrated over instead of
    taken at its maximum; conjugacy as in Murphy 2012, section 7.6.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import ELBO, Batch, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.likelihoods import MultiGaussian
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny).eval(), MultiGaussian(2), rank=2, head=ConjugateLastLayer(), num_data=100)
    >>> guide = Delta(model)
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])}, targets=torch.zeros(2, 2))
    >>> elbo = ELBO(model, guide)
    >>> bool(elbo(batch) == elbo(batch)), predict(model, guide, batch).variance.shape
    (True, torch.Size([2, 2]))
    """

    name: ClassVar[str] = "conjugate"

    def __init__(
        self,
        covariance: Covariance | str = Covariance.DENSE,
        *,
        prior_scale: float = 1.0,
        init_scale: float = 0.1,
        noise_scale: float = 0.5,
        noise_weight: float = 2.0,
        pooling: Pooling | str | None = None,
    ) -> None:
        super().__init__(pooling)
        self.covariance = choice(Covariance, "covariance", covariance)
        if self.covariance is Covariance.LOW_RANK:
            raise ConfigError("covariance of ConjugateLastLayer is 'diagonal' or 'dense'; got 'low_rank'.")
        scales = read_scales(prior_scale, init_scale, noise_scale=noise_scale, noise_weight=noise_weight)
        self.prior_scale, self.init_scale, self.noise_scale, self.noise_weight = scales

    def suit(self, likelihood: Likelihood) -> None:
        require_numbers(type(self).__name__, likelihood)
        super().suit(likelihood)

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        outputs = likelihood.num_outputs
        return [Site(JOINT, Part.FACTOR, (JOINT,), (outputs, width + 1 + outputs), Granularity.GLOBAL)]

    def prior(self, site: Site) -> TorchDistributionMixin:
        outputs, width = site.event[0], site.event[1] - site.event[0]
        columns = self.prior_scale / math.sqrt(width - 1) * torch.eye(width)
        spread = math.sqrt(self.noise_weight) * self.noise_scale * torch.eye(outputs)
        df = torch.tensor(outputs + 1 + self.noise_weight)
        return MatrixNormalInverseWishart(torch.zeros(outputs, width), columns, spread, df)

    def posterior(self, sites: list[Site], likelihood: Likelihood) -> HeadPosterior:
        outputs, width = sites[0].event[0], sites[0].event[1] - sites[0].event[0]
        start = augmented_start(width - 1, outputs)
        scale = self.init_scale * self.prior_scale / math.sqrt(width - 1)
        return _Together(start, scale, self.noise_scale, self.noise_weight, self.covariance)

    def build(self, width: int, likelihood: Likelihood) -> None:
        likelihood.get_parameter("log_scale").requires_grad_(False)

    def forward(self, features: Float[Tensor, "rows d"]) -> ConjugateOutputs:
        weight = self.drawn(JOINT)
        with fp32(features.device):
            features = augmented(features.to(weight.value.dtype))
            if isinstance(weight, Moments):
                q: Any = base_distribution(weight.posterior)
                mean = features @ q.loc[weight.layer].mT
                leverage = (features @ q.columns[weight.layer]).square().sum(-1)
                noise = q.noise[weight.layer].diagonal()
                variance, spread, df = leverage[:, None] * noise, q.spread[weight.layer], q.df[weight.layer]
                return ConjugateOutputs(mean=mean, variance=variance, leverage=leverage, spread=spread, df=df)
            value = weight.value.reshape(-1, *weight.value.shape[-2:])
            if len(value) > 1:
                raise ConfigError(
                    "Several draws of ConjugateLastLayer's weights and noise in one pass have no joint predictive. "
                    "Predict with its own posterior, which draws nothing, or pass chunk_size=1."
                )
            mean = features @ value[0, :, : features.shape[1]].mT
            leverage, spread = mean.new_zeros(len(mean)), value[0, :, features.shape[1] :]
            return ConjugateOutputs(
                mean=mean, variance=torch.zeros_like(mean), leverage=leverage, spread=spread, df=None
            )

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "covariance": self.covariance.value,
            "prior_scale": self.prior_scale,
            "init_scale": self.init_scale,
            "noise_scale": self.noise_scale,
            "noise_weight": self.noise_weight,
        }


class _Together(HeadPosterior):
    """q(W, Σ), told by its moments: M, the factor of V, E Σ, and ν above that of the prior."""

    draws = False

    def __init__(self, start: Tensor, scale: float, noise: float, weight: float, covariance: Covariance) -> None:
        super().__init__()
        outputs, width = start.shape
        self.least = outputs + 1 + weight
        self.loc = nn.Parameter(start[None].clone())
        self.log_scale = nn.Parameter(torch.full((1, width), math.log(scale)))
        self.lower = nn.Parameter(torch.zeros(1, width, width)) if covariance is Covariance.DENSE else None
        self.log_noise = nn.Parameter(torch.full((1, outputs), math.log(noise)))
        self.noise_lower = nn.Parameter(torch.zeros(1, outputs, outputs))
        self.log_count = nn.Parameter(torch.zeros(1))

    def forward(self, call: SiteCall) -> TorchDistributionMixin:
        df = self.least + self.log_count.exp()
        columns = _factor(self.log_scale, self.lower)
        noise = _factor(self.log_noise, self.noise_lower)
        outputs = noise.shape[-1]
        spread = (df - outputs - 1).sqrt()[:, None, None] * noise
        call.moments = MatrixNormalInverseWishart(self.loc, columns, spread, df, validate_args=False)
        return call.moments


def _factor(log_scale: Tensor, lower: Tensor | None) -> Tensor:
    """A Cholesky factor ``diag(s) (I + L')``, L' below the diagonal."""
    scale = log_scale.exp()
    if lower is None:
        return torch.diag_embed(scale)
    return scale[..., None] * (lower.tril(-1) + torch.eye(lower.shape[-1]).to(lower))
