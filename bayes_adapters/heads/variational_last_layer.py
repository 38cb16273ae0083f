"""A linear head whose random weights are integrated out in closed form: a variational Bayesian last layer (VBLL)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.adapters.moments import Moments
from bayes_adapters.adapters.reparametrisation import Weight
from bayes_adapters.devices import fp32
from bayes_adapters.errors import choice, whole_number
from bayes_adapters.heads._augmented import augmented, augmented_start, read_scales
from bayes_adapters.heads._checks import inverse_gamma, require_expected
from bayes_adapters.heads.covariance import Covariance, GaussianRows
from bayes_adapters.heads.head import Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.posterior import HeadPosterior
from bayes_adapters.heads.predictive import Predictive, probit
from bayes_adapters.likelihoods import GaussianOutputs, Likelihood
from bayes_adapters.sites import Granularity, Part, Site, SiteCall

WEIGHT, NOISE, OUTPUTS = "head.weight", "head.noise", "head.outputs"


class VariationalLastLayer(Head):
    """``f = W φ + ε``, φ = [pool(h) ; √d], with ``w_k ~ N(0, s₀²/d I)`` and a Gaussian posterior ``N(m_k, S_k)``.

    The last column of W, times √d, is the bias. W is never drawn in training: the head tells the likelihood the moments
    of f, and one pass gives the loss::

        classes    ε_k ~ N(0, σ_k²),  v_k = φᵀ S_k φ + σ_k²,
                   E_q log p(y | x) ≥ m_yᵀ φ − logsumexp_k(m_kᵀ φ + ½ v_k)
        numbers    y_k ~ N(f_k, σ_k²) without ε,
                   E_q log p(y | x) = Σ_k [ log N(y_k; m_kᵀ φ, σ_k²) − ½ φᵀ S_k φ / σ_k² ]

    and each has one KL(q(W) ‖ p(W)) per data set, so the model needs ``num_data``. σ² has the inverse-gamma prior
    ``noise_prior`` and is a point, at the maximum of the bound with its density. For numbers it is the likelihood's
    own σ (``likelihood.log_scale``), whose unit is that of f; :class:`ConjugateLastLayer` integrates it out.

    Prediction. Numbers: exact, ``N(m_kᵀ φ, φᵀ S_k φ + σ_k²)``, without draws; epistemic is the part of φᵀ S φ. Classes:
    each of ``num_samples`` draws takes independent logits ``f_k ~ N(m_kᵀ φ, v_k)``, which is their exact joint law for
    one example; where nothing else is random all of them come from one pass of the backbone. Draws of different
    examples are independent, so averages over examples within a draw mean nothing; :class:`BayesianLinear` has
    functions. ``predictive="probit"`` draws nothing: each pass answers ``softmax(m / √(1 + π v / 8))``, and what is not
    known of W counts as aleatoric. ``mean_only=True`` gives ``softmax(m)``.

    The head stands beside any guide of the adapters. Where that draws, the loss is the bound per draw, averaged, and
    prediction splits uncertainty over adapters and head together. Pyro's own guides and MCMC draw W, ε and σ² from the
    same density; an own guide with this head trains by ``ELBO`` and ``fit`` only, as they know the bound.

    Args:
        covariance: S_k: ``"diagonal"``, ``"low_rank"`` or ``"dense"``; see :class:`Covariance`.
        covariance_rank: r of a covariance of low rank.
        prior_scale: s₀ > 0.
        init_scale: the standard deviation of an entry at the start, as a part of the prior's.
        noise_prior: (a, b) of ``σ² ~ InverseGamma(a, b)``, density ∝ σ^(−2(a+1)) exp(−b/σ²); for classes σ² starts at
            its mode b / (a + 1). None: no ε, and for numbers no prior on the likelihood's σ.
        predictive: how classes are predicted: ``"draws"`` or ``"probit"``; see :class:`Predictive`.
        bias: whether φ has its last entry.
        pooling: see :class:`Pooling`; None is the mean.

    Raises:
        ConfigError: an option out of range, or a likelihood without a closed form.

    Source: Harrison, Willes and Snoek 2024, arXiv 2404.11599.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import ELBO, Batch, Categorical, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> head = VariationalLastLayer("dense")
    >>> model = LoRA(BertModel(tiny).eval(), Categorical(3), rank=2, head=head, num_data=100)
    >>> guide = Delta(model)
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])}, targets=torch.tensor([0, 2]))
    >>> elbo = ELBO(model, guide)
    >>> bool(elbo(batch) == elbo(batch))  # nothing is drawn
    True
    >>> predict(model, guide, batch, num_samples=100).probs.shape
    torch.Size([2, 3])
    """

    name: ClassVar[str] = "vbll"

    def __init__(
        self,
        covariance: Covariance | str = Covariance.DIAGONAL,
        *,
        covariance_rank: int = 4,
        prior_scale: float = 1.0,
        init_scale: float = 0.1,
        noise_prior: Sequence[float] | None = (1.0, 0.01),
        predictive: Predictive | str = Predictive.DRAWS,
        bias: bool = True,
        pooling: Pooling | str | None = None,
    ) -> None:
        super().__init__(pooling)
        self.predictive = choice(Predictive, "predictive", predictive)
        self.covariance = choice(Covariance, "covariance", covariance)
        whole_number("covariance_rank", covariance_rank)
        self.covariance_rank, self.bias = covariance_rank, bias
        self.prior_scale, self.init_scale = read_scales(prior_scale, init_scale)
        self.noise_prior = None if noise_prior is None else inverse_gamma("noise_prior", noise_prior)

    def suit(self, likelihood: Likelihood) -> None:
        require_expected(type(self).__name__, likelihood)
        super().suit(likelihood)

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        events: dict[str, tuple[int, ...]] = {WEIGHT: (likelihood.num_outputs, width + self.bias)}
        events |= {} if self.noise_prior is None else {NOISE: (likelihood.num_outputs,)}
        return [Site(name, Part.FACTOR, (name,), event, Granularity.GLOBAL) for name, event in events.items()]

    def prior(self, site: Site) -> TorchDistributionMixin:
        if site.name == WEIGHT:
            rows, width = site.event
            return self.covariance.isotropic(rows, width, self.prior_scale / math.sqrt(width - self.bias))
        a, b = self.noise_prior or (1.0, 1.0)
        return dist.InverseGamma(torch.full(site.event, a), torch.full(site.event, b))

    def posterior(self, sites: list[Site], likelihood: Likelihood) -> HeadPosterior:
        rows, width = sites[0].event
        start = augmented_start(width - self.bias, rows)[:, :width]
        scale = self.init_scale * self.prior_scale / math.sqrt(width - self.bias)
        weight = GaussianRows(start, scale, self.covariance, self.covariance_rank)
        return _IntegratedOut(weight, likelihood, self.noise_prior, rows, self.predictive)

    def build(self, width: int, likelihood: Likelihood) -> None:
        self._exact = likelihood.expected_predicts

    def forward(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows K"] | GaussianOutputs:
        forward_pass, weight = self.current_pass(WEIGHT), self.drawn(WEIGHT)
        with fp32(features.device):
            mean, variance = self._moments(weight, features.to(weight.value.dtype))
            noise = None if self.noise_prior is None else _to_rows(self.drawn(NOISE).value, mean)
            if self._exact:
                return GaussianOutputs(mean, variance, noise)
            integrated, variance = isinstance(weight, Moments), variance if noise is None else variance + noise
            if integrated and forward_pass.rows.batch.targets is not None:
                return GaussianOutputs(mean, variance)
            if not integrated and noise is None:
                return mean
            if integrated and self.predictive is Predictive.PROBIT:
                return probit(mean, variance)
            shape = (*forward_pass.rows.outer, forward_pass.rows.batch.size, mean.shape[1])
            fn = dist.Normal(mean.reshape(shape), variance.reshape(shape).sqrt(), validate_args=False)
            return pyro.sample(OUTPUTS, fn.to_event(1)).reshape(mean.shape)

    def _moments(self, weight: Weight, features: Float[Tensor, "rows d"]) -> tuple[Tensor, Tensor]:
        """Mean and variance of W φ, each of shape (rows, K); given a draw of W there is no variance."""
        features = augmented(features) if self.bias else features
        mean = weight.times(features)
        return mean, weight.variance(features) if isinstance(weight, Moments) else torch.zeros_like(mean)

    def config(self) -> dict[str, Any]:
        return super().config() | {
            "covariance": self.covariance.value,
            "covariance_rank": self.covariance_rank,
            "prior_scale": self.prior_scale,
            "init_scale": self.init_scale,
            "noise_prior": None if self.noise_prior is None else list(self.noise_prior),
            "predictive": self.predictive.value,
            "bias": self.bias,
        }


def _to_rows(noise: Tensor, like: Float[Tensor, "rows K"]) -> Float[Tensor, "rows K"]:
    """The noise of each sample, (*S, 1, K) or (K), for the rows of all, in the order [S, B]."""
    noise = noise.reshape(-1, 1, like.shape[1])
    return noise.expand(-1, len(like) // len(noise), -1).reshape(like.shape)


class _IntegratedOut(HeadPosterior):
    """A Gaussian over W, told by its moments, and a point for the noise: of its own, or the likelihood's."""

    def __init__(
        self,
        weight: GaussianRows,
        likelihood: Likelihood,
        noise_prior: tuple[float, float] | None,
        outputs: int,
        predictive: Predictive,
    ) -> None:
        super().__init__()
        self.weight = weight
        self._exact = likelihood.expected_predicts
        self.draws = not self._exact and predictive is Predictive.DRAWS
        self._likelihood = (likelihood,)  # in a tuple: its parameters are the model's
        if not self._exact and noise_prior is not None:
            a, b = noise_prior
            self.log_noise = nn.Parameter(torch.full((1, outputs), math.log(b / (a + 1.0))))

    def forward(self, call: SiteCall) -> TorchDistributionMixin:
        if call.site.name == WEIGHT:
            call.moments = self.weight()
            return call.moments
        likelihood: Any = self._likelihood[0]
        log_noise: Any = 2.0 * likelihood.log_scale if self._exact else self.log_noise
        return dist.Delta(log_noise.exp().expand(1, *call.site.event), event_dim=1)
