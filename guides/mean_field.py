"""``MeanField``: an input-free Gaussian over each layer's core (weights, or the fixed-E control of C-LoRA)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from bayes_adapters.errors import ConfigError
from bayes_adapters.guide import AdapterGuide, site_key
from bayes_adapters.model import AdapterModel
from bayes_adapters.sites import CoreCall, Granularity


class MeanField(AdapterGuide):
    """``q(E_l) = Π_ij N(μ_lij, exp(log_scale_lij)²)`` with free μ and log_scale.

    Global sites: a posterior over weights, one draw a pass. Local sites: the fixed-E ("FE") control of C-LoRA, table 4:
    each token draws its own core from the same q. μ starts at a draw from the prior (torch's generator).

    Args:
        model: any model with core sites.
        init_scale: initial standard deviation of every entry.
    """

    name: ClassVar[str] = "mean_field"
    serves: ClassVar[frozenset[Granularity]] = frozenset(Granularity)

    def __init__(self, model: AdapterModel, *, init_scale: float = 0.1) -> None:
        super().__init__(model)
        if not 0 < init_scale < math.inf:
            raise ConfigError(f"init_scale is a standard deviation and must be positive and finite; got {init_scale}.")
        self.init_scale = init_scale
        start = {site_key(s): model.prior.core(s).sample().clone() for s in model.sites}
        self.loc = nn.ParameterDict({key: nn.Parameter(value) for key, value in start.items()})
        self.log_scale = nn.ParameterDict(
            {key: nn.Parameter(torch.full_like(value, math.log(init_scale))) for key, value in start.items()}
        )

    def posterior(self, call: CoreCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        key = site_key(call.site)
        return dist.Normal(self.loc[key], self.log_scale[key].exp(), validate_args=False).to_event(2)

    def config(self) -> dict[str, Any]:
        return {"init_scale": self.init_scale}
