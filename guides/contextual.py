"""``Contextual``: the core's posterior depends on this layer's own low-rank feature (C-LoRA)."""

from __future__ import annotations

from typing import Any, ClassVar

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import nn

from bayes_adapters.errors import choice
from bayes_adapters.guide import AdapterGuide, site_key
from bayes_adapters.guides._head import PosteriorHead, ScaleTransform, fp32
from bayes_adapters.model import AdapterModel
from bayes_adapters.sites import Granularity, SiteCall


class Contextual(AdapterGuide):
    """``q(E_t | z_t) = N(μ(z_t), f(g(z_t))²)`` with ``z_t = A x_t`` and one two-layer network a layer.

    Source: C-LoRA, arXiv 2505.17773 and its released code (hidden width 64, σ = sigmoid(g)², one core per token).

    Args:
        model: a model with token or sequence sites.
        width: hidden units of the network.
        scale: ``"sigmoid_squared"`` or ``"softplus"``.
    """

    name: ClassVar[str] = "contextual"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.TOKEN, Granularity.SEQUENCE})

    def __init__(
        self, model: AdapterModel, *, width: int = 64, scale: ScaleTransform | str = ScaleTransform.SIGMOID_SQUARED
    ) -> None:
        super().__init__(model)
        self.width, self.scale = width, choice(ScaleTransform, "scale", scale)
        self.heads = nn.ModuleDict({site_key(s): PosteriorHead(s.rank, s.rank, width, self.scale) for s in model.sites})

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        with fp32(call.z.device):
            return self.heads[site_key(call.site)](call.z, prior)

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "scale": self.scale.value}
