"""``MeanField``: an input-free Gaussian over a part of each layer's adapter (weights, or the fixed-E control)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.errors import choice
from bayes_adapters.guides._checks import require_log, scale_interval
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part, SiteCall


class ScaleParameter(StrEnum):
    """How the free number ρ of an entry becomes its standard deviation."""

    LOG = "log"
    """σ = exp(ρ)."""
    ROOT = "root"
    """σ = ρ², as in BLoB's code."""

    def scale(self, rho: Tensor) -> Tensor:
        """Return σ."""
        return rho.exp() if self is ScaleParameter.LOG else rho.square()

    def rho(self, scale: Tensor) -> Tensor:
        """Return the (non-negative) ρ of σ."""
        return scale.log() if self is ScaleParameter.LOG else scale.sqrt()


class MeanField(AdapterGuide):
    """``q(W) = Π_i N(μ_i, σ_i²)`` over every entry of every site, with free μ and σ.

    Global sites: a posterior over weights, one draw per pass: BLoB where A is random, ScalaBL where the core's diagonal
    is. Local cores: the fixed-E ("FE") control of C-LoRA, table 4: each token draws its own core from the same q. Where
    μ starts is the model's to say (``AdapterModel.start``).

    Args:
        model: any model with real-valued sites.
        init_scale: initial standard deviation of every entry; a pair (low, high) draws √σ uniformly between the roots.
        parameter: ``"log"`` or ``"root"``: what is trained in the place of σ.
        positive_mean: train log μ rather than μ (ScalaBL); the start must then be positive.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> guide = MeanField(model, init_scale=0.05)
    >>> {name: tuple(value.shape) for name, value in guide.named_parameters()}
    {'loc.A-global': (2, 2, 8), 'rho.A-global': (2, 2, 8)}
    """

    name: ClassVar[str] = "mean_field"
    serves: ClassVar[frozenset[Granularity]] = frozenset(Granularity)
    parts: ClassVar[frozenset[Part]] = REAL
    serves_hyper: ClassVar[bool] = True

    def __init__(
        self,
        model: AdapterModel,
        *,
        init_scale: float | Sequence[float] = 0.1,
        parameter: ScaleParameter | str = ScaleParameter.LOG,
        positive_mean: bool = False,
    ) -> None:
        super().__init__(model)
        low, high = scale_interval(init_scale)
        self.init_scale = init_scale if isinstance(init_scale, int | float) else (low, high)
        self.parameter = choice(ScaleParameter, "parameter", parameter)
        self.positive_mean = positive_mean
        self.loc = nn.ParameterDict()
        self.rho = nn.ParameterDict()
        for site in model.sites:
            start = model.start(site)
            require_log(positive_mean, site, start)
            root = torch.empty_like(start).uniform_(math.sqrt(low), math.sqrt(high))
            self.loc[site_key(site)] = nn.Parameter(start.log() if positive_mean else start)
            self.rho[site_key(site)] = nn.Parameter(self.parameter.rho(root.square()))

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        key = site_key(call.site)
        loc = self.loc[key].exp() if self.positive_mean else self.loc[key]
        scale = self.parameter.scale(self.rho[key])
        return dist.Normal(loc, scale, validate_args=False).to_event(len(call.site.event))

    def config(self) -> dict[str, Any]:
        return {
            "init_scale": self.init_scale,
            "parameter": self.parameter.value,
            "positive_mean": self.positive_mean,
        }
