"""``LowRank``: a Gaussian over all weights of a model together, its covariance of low rank plus a diagonal."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from bayes_adapters.distributions._checks import positive_definite
from bayes_adapters.errors import whole_number
from bayes_adapters.guides._checks import require_deviation
from bayes_adapters.guides._covariance_checks import require_factor_memory
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class LowRank(JointGuide):
    """``q(w) = N(μ, W Wᵀ + diag(σ²))`` over all D entries of all sites: draws correlate across layers and sites.

    W has shape (D, k): k directions in which all weights move together, besides each entry's own σ. Parameters: D (k +
    2). The KL from a Gaussian prior with independent entries is closed, and costs O(D k²).

    Source: the covariance of Ong, Nott and Smith 2018, "Gaussian variational approximation with a factor covariance
    structure", arXiv 1701.03208.

    Args:
        model: a model whose random parts are weights.
        covariance_rank: k.
        init_scale: σ at the start, a standard deviation; W starts at a tenth of it, at random.
        max_gigabytes: the largest W that is accepted. Training takes four times that: W, its gradient and two moments
            of Adam.

    Raises:
        ConfigError: W would be larger than ``max_gigabytes``; an option is out of range.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> guide = LowRank(model, covariance_rank=3)
    >>> guide.joint().event_shape  # the 32 entries of A in two layers
    torch.Size([32])
    """

    name: ClassVar[str] = "low_rank"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL

    def __init__(
        self, model: AdapterModel, *, covariance_rank: int = 4, init_scale: float = 0.1, max_gigabytes: float = 1.0
    ) -> None:
        super().__init__(model)
        whole_number("covariance_rank", covariance_rank)
        require_deviation(init_scale)
        require_factor_memory(self.size, covariance_rank, max_gigabytes)
        self.covariance_rank, self.init_scale, self.max_gigabytes = covariance_rank, init_scale, max_gigabytes
        start = self.start()
        self.loc = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(init_scale)))
        factor = torch.randn(self.size, covariance_rank) * (0.1 * init_scale / math.sqrt(covariance_rank))
        self.factor = nn.Parameter(factor.to(start))

    def joint(self) -> TorchDistributionMixin:
        scale = self.log_scale.exp()
        with positive_definite(self, scale):
            return dist.LowRankMultivariateNormal(self.loc, self.factor, scale.square(), validate_args=False)

    def config(self) -> dict[str, Any]:
        sizes = {"covariance_rank": self.covariance_rank, "init_scale": self.init_scale}
        return sizes | ({} if self.max_gigabytes == 1.0 else {"max_gigabytes": self.max_gigabytes})
