"""A head that models the features of each class: its predictive has no draws, and says how dense the features are."""

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
from bayes_adapters.devices import fp32
from bayes_adapters.heads._augmented import read_scales
from bayes_adapters.heads._checks import inverse_gamma, require_classes
from bayes_adapters.heads.covariance import Covariance, GaussianRows
from bayes_adapters.heads.head import Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.posterior import HeadPosterior
from bayes_adapters.likelihoods import GaussianOutputs, Likelihood
from bayes_adapters.sites import Granularity, Part, Site, SiteCall

CENTRE, SPREAD, CLASSES = "head.centre", "head.spread", "head.classes"
LOG_DENSITY = "head.log_density"
"""The name of the log density of an example's features, which a pass without targets records."""


class GenerativeLastLayer(Head):
    """``φ | y = k ~ N(μ_k, Σ)``, ``y ~ Categorical(π)``, φ = pool(h) of width d: the generative form of VBLL.

    Prior ``μ_k ~ N(0, s₀² I)``, ``π ~ Dirichlet(1)``, ``Σ = diag(σ²)`` with ``σ_j² ~ InverseGamma(a, b)``. Posterior
    ``μ_k ~ N(m_k, S_k)``, S_k diagonal, ``π ~ Dirichlet(α)``, and a point for Σ. Training maximises a bound of the
    probability of the class given φ, from one pass and without draws::

        E_q log p(y | φ) ≥ j_y − logsumexp_k r_k
        j_k = E_q log [N(φ; μ_k, Σ) π_k] = log N(φ; m_k, Σ) − ½ tr(Σ⁻¹ S_k) + ψ(α_k) − ψ(Σ_l α_l)
        r_k = log E_q [N(φ; μ_k, Σ) π_k] = log N(φ; m_k, Σ + S_k) + log α_k / Σ_l α_l

    and each site has one KL per data set, so the model needs ``num_data``. Prediction is ``softmax(r)``, exact given q
    and without draws: what is not known of μ and π widens it and counts as aleatoric; epistemic is that of the
    adapters. Far from all classes the answer may be sure and wrong. There ``log p(φ) = logsumexp_k r_k`` is small:
    :func:`bayes_adapters.reliability.feature_density` returns it, a score of what is out of distribution.

    Args:
        prior_scale: s₀ > 0, in the unit of the features.
        init_scale: the standard deviation of an entry of μ at the start is ``init_scale / √d``.
        spread_prior: (a, b); σ² starts at its mode b / (a + 1).
        pooling: see :class:`Pooling`; None is the mean.

    Raises:
        ConfigError: an option out of range, or a likelihood other than ``Categorical``.

    Source: Harrison, Willes and Snoek 2024, arXiv 2404.11599, section 3.3.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Categorical, predict
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> from bayes_adapters.reliability import feature_density
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny), Categorical(3), rank=2, head=GenerativeLastLayer(), num_data=100)
    >>> guide = Delta(model)
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])})
    >>> predict(model, guide, batch).probs.shape, feature_density(model, guide, batch).shape
    (torch.Size([2, 3]), torch.Size([2]))
    """

    name: ClassVar[str] = "generative"

    def __init__(
        self,
        *,
        prior_scale: float = 1.0,
        init_scale: float = 0.1,
        spread_prior: Sequence[float] = (1.0, 1.0),
        pooling: Pooling | str | None = None,
    ) -> None:
        super().__init__(pooling)
        self.prior_scale, self.init_scale = read_scales(prior_scale, init_scale)
        self.spread_prior = inverse_gamma("spread_prior", spread_prior)

    def suit(self, likelihood: Likelihood) -> None:
        require_classes(type(self).__name__, likelihood)
        super().suit(likelihood)

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        classes = likelihood.num_outputs
        events: dict[str, tuple[int, ...]] = {CENTRE: (classes, width), SPREAD: (width,), CLASSES: (classes,)}
        return [Site(name, Part.FACTOR, (name,), event, Granularity.GLOBAL) for name, event in events.items()]

    def prior(self, site: Site) -> TorchDistributionMixin:
        if site.name == CENTRE:
            classes, width = site.event
            return Covariance.DIAGONAL.isotropic(classes, width, self.prior_scale)
        if site.name == CLASSES:
            return dist.Dirichlet(torch.ones(site.event))
        a, b = self.spread_prior
        return dist.InverseGamma(torch.full(site.event, a), torch.full(site.event, b))

    def posterior(self, sites: list[Site], likelihood: Likelihood) -> HeadPosterior:
        classes, width = sites[0].event
        a, b = self.spread_prior
        variance = b / (a + 1.0)
        start = variance * nn.Linear(width, classes).weight  # Σ⁻¹ μ is what multiplies φ, as a linear layer's weight
        return _Classes(GaussianRows(start, self.init_scale / math.sqrt(width), Covariance.DIAGONAL, 1), variance)

    def build(self, width: int, likelihood: Likelihood) -> None:
        """Nothing of its own: the weights have posteriors."""

    def forward(self, features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows K"] | GaussianOutputs:
        rows = self.current_pass(CENTRE).rows
        centre, classes = self.drawn(CENTRE), self.drawn(CLASSES)
        with fp32(features.device):
            spread = self.drawn(SPREAD).value
            spread = spread.reshape(-1, spread.shape[-1])
            features = features.to(spread.dtype)
            if not (isinstance(centre, Moments) and isinstance(classes, Moments)):
                means = centre.value.reshape(-1, *centre.value.shape[-2:])
                weights = classes.value.reshape(-1, classes.value.shape[-1]).log()
                return _log_normal(features, means, spread[:, None]) + _repeated(weights, features)
            q, alpha = centre.posterior.base_dist, classes.posterior.concentration[classes.layer]
            loc, known = q.loc[centre.layer], q.scale[centre.layer].square()
            joint = _log_normal(features, loc[None], spread[:, None]) - 0.5 * _repeated(
                (known / spread[:, None]).sum(-1), features
            )
            joint = joint + torch.digamma(alpha) - torch.digamma(alpha.sum())
            evidence = _log_normal(features, loc[None], spread[:, None] + known) + (alpha / alpha.sum()).log()
            if rows.batch.targets is not None:
                return GaussianOutputs(joint, 2.0 * (evidence - joint))  # the bound of outputs with these moments
            density = evidence.logsumexp(-1).reshape(*rows.outer, rows.batch.size)
            pyro.deterministic(LOG_DENSITY, density, event_dim=0)
            return evidence

    def config(self) -> dict[str, Any]:
        own = {"prior_scale": self.prior_scale, "init_scale": self.init_scale, "spread_prior": [*self.spread_prior]}
        return super().config() | own


def _repeated(value: Float[Tensor, "S K"], features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows K"]:
    """What S samples have, S being 1 where all share it, for each of their rows."""
    return value.repeat_interleave(len(features) // len(value), 0)


def _log_normal(
    features: Float[Tensor, "rows d"], mean: Float[Tensor, "_ K d"], variance: Float[Tensor, "_ _ d"]
) -> Float[Tensor, "rows K"]:
    """Return log N(φ; μ_k, diag(σ_k²)), rows in the order [S, B].

    The square is written out, so that no tensor has rows × K × d entries.
    """
    samples = max(len(mean), len(variance))
    x = features.reshape(samples, -1, features.shape[-1])
    precision = (1.0 / variance).expand(samples, mean.shape[1], -1)
    mean = mean.expand(samples, -1, -1)
    centre = mean.mean(1, keepdim=True)  # squares of differences from a common point: less is rounded away
    x, mean = x - centre, mean - centre
    square = x.square() @ precision.mT - 2.0 * x @ (precision * mean).mT + (precision * mean.square()).sum(-1)[:, None]
    norm = (precision.log() - math.log(2 * math.pi)).sum(-1)[:, None]
    return (0.5 * (norm - square)).flatten(0, 1)


class _Classes(HeadPosterior):
    """A Gaussian over the centres and a Dirichlet over the classes, told by their moments, and a point for Σ."""

    draws = False

    def __init__(self, centre: GaussianRows, variance: float) -> None:
        super().__init__()
        self.centre = centre
        _, classes, width = centre.loc.shape
        self.log_spread = nn.Parameter(torch.full((1, width), math.log(variance)))
        self.log_concentration = nn.Parameter(torch.zeros(1, classes))

    def forward(self, call: SiteCall) -> TorchDistributionMixin:
        if call.site.name == SPREAD:
            return dist.Delta(self.log_spread.exp(), event_dim=1)
        call.moments = (
            self.centre()
            if call.site.name == CENTRE
            else dist.Dirichlet(self.log_concentration.exp(), validate_args=False)
        )
        return call.moments
