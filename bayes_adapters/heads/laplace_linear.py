"""A linear head with a Gaussian posterior over all of its weights together, from the curvature of a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayes_adapters.curved_gaussian import CurvedGaussian
from bayes_adapters.heads.head import Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.heads.posterior import HeadPosterior
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.sites import Granularity, Part, Site, SiteCall

WEIGHT = "head.weight"


class LaplaceLinear(Head):
    """``f = W [pool(h) ; 1]`` with ``vec W ~ N(m, (λ I + H)⁻¹)``, W of shape (K, d + 1), its last column the bias.

    H is the curvature of −log p(data | W) at the trained m, and the prior N(0, I/λ); see
    :class:`~bayes_adapters.curved_gaussian.CurvedGaussian`, which the guide holds as
    ``guide.head_posterior.gaussian``. :func:`bayes_adapters.surgery.last_layer.last_layer_laplace` makes model and
    guide from a trained model with a linear head. Nothing of the posterior is trained. It stands beside any guide of
    the adapters; where that is a point, all draws share one pass of the backbone. A draw is one function of all inputs,
    and since f is linear in W the linearised predictive is that of the draws.

    Args:
        blocks: (first entry, entry after the last, k) of vec W, row by row, for each block with directions.
        pooling: see :class:`Pooling`; None is the mean, or none at all where the likelihood has one target per token.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Categorical
    >>> from bayes_adapters.guides import Delta
    >>> from bayes_adapters.models import LoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = LoRA(BertModel(tiny), Categorical(3), rank=2, head=LaplaceLinear(), num_data=100)
    >>> Delta(model).head_posterior.gaussian().event_shape
    torch.Size([27])
    """

    name: ClassVar[str] = "laplace_linear"

    def __init__(self, blocks: Sequence[Sequence[int]] = (), *, pooling: Pooling | str | None = None) -> None:
        super().__init__(pooling)
        self.blocks = [list(block) for block in blocks]

    def sites(self, width: int, likelihood: Likelihood) -> list[Site]:
        size = likelihood.num_outputs * (width + 1)
        return [Site(WEIGHT, Part.FACTOR, (WEIGHT,), (size,), Granularity.GLOBAL)]

    def prior(self, site: Site) -> TorchDistributionMixin:
        return dist.Normal(torch.zeros(site.event), torch.ones(site.event))

    def posterior(self, sites: list[Site], likelihood: Likelihood) -> HeadPosterior:
        return _Posterior(CurvedGaussian(torch.zeros(prod(sites[0].event)), self.blocks, 1.0))

    def build(self, width: int, likelihood: Likelihood) -> None:
        self._rows = likelihood.num_outputs

    def forward(self, features: Float[Tensor, "rows *T d"]) -> Float[Tensor, "rows *T K"]:
        weight = self.drawn(WEIGHT).value
        weight = weight.reshape(-1, self._rows, features.shape[-1] + 1)  # of each sample
        flat = features.to(weight.dtype).reshape(len(weight), -1, features.shape[-1])
        outputs = flat @ weight[..., :-1].mT + weight[:, None, :, -1]
        return outputs.reshape(*features.shape[:-1], self._rows)

    def config(self) -> dict[str, Any]:
        return super().config() | {"blocks": self.blocks}


class _Posterior(HeadPosterior):
    """One Gaussian over all entries of W."""

    def __init__(self, gaussian: CurvedGaussian) -> None:
        super().__init__()
        self.gaussian = gaussian

    def forward(self, call: SiteCall) -> TorchDistributionMixin:
        return self.gaussian()
