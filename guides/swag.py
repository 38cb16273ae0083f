"""``SWAG``: a Gaussian with the moments of the weights along a trajectory of SGD; nothing is trained."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.distributions._checks import positive_definite, require_moments, require_rows
from bayes_adapters.errors import whole_number
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class SWAG(JointGuide):
    """``q(w) = N(w̄, ½ [ diag(v) + D Dᵀ / (K − 1) ])`` over all entries of all sites.

    w̄ and v are mean and variance of the weights that training passed through, ``v = mean(w²) − w̄²``, and the K columns
    of D the last K of them minus the mean up to then. K = 0 is SWAG-diagonal, ``N(w̄, diag(v))``. v is at least 1e-12.

    :class:`bayes_adapters.surgery.swag.Trajectory` gathers them while ``fit`` runs, and makes model and guide. All are
    buffers: ``save`` and ``load`` keep them, and nothing of the guide is trained.

    Source: Maddox et al. 2019, arXiv 1902.02476, equation 1 of section 3.3.

    Args:
        model: a model whose random parts are weights.
        columns: K; 0 or at least 2.

    Raises:
        ConfigError: K is 1, whose deviation has no variance, or negative.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> SWAG(model, columns=5).joint().cov_factor.shape  # the 32 entries of A in two layers
    torch.Size([32, 5])
    """

    name: ClassVar[str] = "swag"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL
    serves_hyper: ClassVar[bool] = False

    def __init__(self, model: AdapterModel, *, columns: int = 0) -> None:
        super().__init__(model)
        whole_number("columns", columns, least=0 if columns == 0 else 2)
        self.columns = columns
        start = self.start()
        self.register_buffer("loc", start)
        self.register_buffer("variance", torch.full_like(start, 1e-12))
        self.register_buffer("deviations", start.new_zeros(columns, self.size))

    @torch.no_grad()
    def place(self, loc: Float[Tensor, " D"], variance: Float[Tensor, " D"], deviations: Float[Tensor, "K D"]) -> None:
        """Set w̄, v and the columns of D, which are rows here.

        Raises:
            ConfigError: something is not finite or of another shape, or a variance negative.
        """
        require_rows("deviations", deviations, self.columns, self.size)
        require_moments(loc, variance, self.size)
        for name, value in {"loc": loc, "variance": variance.clamp_min(1e-12), "deviations": deviations}.items():
            self.get_buffer(name).copy_(value)

    def joint(self) -> TorchDistributionMixin:
        loc, variance = self.get_buffer("loc"), self.get_buffer("variance")
        if self.columns == 0:
            return dist.Normal(loc, variance.sqrt(), validate_args=False).to_event(1)
        factor = self.get_buffer("deviations").mT / math.sqrt(2 * (self.columns - 1))
        with positive_definite(self, (0.5 * variance).sqrt()):
            return dist.LowRankMultivariateNormal(loc, factor, 0.5 * variance, validate_args=False)

    def config(self) -> dict[str, Any]:
        return {"columns": self.columns}
