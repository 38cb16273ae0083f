"""``InputNoise``: multiplicative noise on A whose variance is a network's answer to the input (BaLoRA)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.data._checks import one_modality
from bayes_adapters.devices import fp32
from bayes_adapters.errors import positive_number, whole_number
from bayes_adapters.guides._checks import require_float32, require_sizes
from bayes_adapters.guides._context import frames_of
from bayes_adapters.guides._context_checks import require_width_of
from bayes_adapters.inference.guide import AdapterGuide, site_key
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import Granularity, Part, SiteCall


class InputNoise(AdapterGuide):
    """``q(η_i) = N(1, a_l(x_i) I)``, one number a per example i and layer l; ``a = softplus(g(x)) + 1e-6``.

    The KL per example and layer is ``r d_in · ½ [ (a + 1)(1−p)/p − 1 + log(p/(1−p)) − log a ]`` under the prior of
    :class:`bayes_adapters.models.BaLoRA`; the mean is plain LoRA, so ``mean_only`` predicts with it.

    g sees what the frozen backbone makes of the input: with ``context_dim`` the mean frame of ``modality`` in
    ``Batch.context``, where you put pooled features of the frozen backbone, and g is one network
    ``d → width → width → L`` for all layers, as published. Without, every layer has a network ``d_in → width → 1`` of
    its own that sees the mean of the layer's own input over real tokens: no second pass, and only in the first adapted
    layer a frozen feature. That variant is this library's.

    Source: BaLoRA, arXiv 2605.08110, second-hand: pooled features of the frozen backbone, 256 hidden units, softplus.

    Args:
        model: a model with noise sites, such as BaLoRA.
        context_dim: width of the frames; None reads each layer's own input.
        modality: the key of the frames in ``Batch.context``.
        width: hidden units of g.
        init_variance: a at the start, for every input.

    Raises:
        ConfigError: a size below 1, a variance that is not positive, ``modality`` without ``context_dim``, or a site
            that cannot be served.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.models import BaLoRA
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = BaLoRA(BertModel(tiny), Bernoulli(), rank=2)
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])})
    >>> predict(model, InputNoise(model, width=16), batch, num_samples=4).mean.shape
    torch.Size([2])
    """

    name: ClassVar[str] = "input_noise"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.SEQUENCE})
    parts: ClassVar[frozenset[Part]] = frozenset({Part.NOISE})
    reads_features: ClassVar[bool] = True

    def __init__(
        self,
        model: AdapterModel,
        *,
        context_dim: int | None = None,
        modality: str = "features",
        width: int = 256,
        init_variance: float = 0.01,
    ) -> None:
        super().__init__(model)
        whole_number("width", width)
        positive_number("init_variance", init_variance)
        self.context_dim, self.modality = context_dim, one_modality(modality)
        require_width_of(modality, context_dim, unused="features")
        self.width, self.init_variance = width, float(init_variance)
        self.order = {site_key(site): place for place, site in enumerate(model.sites)}
        start = self.init_variance + math.log(-math.expm1(-self.init_variance))  # softplus⁻¹
        if context_dim is None:
            sizes = {site_key(site): site.event[-1] for site in model.sites}
            self.nets = nn.ModuleDict({key: _network([size, width], 1, start) for key, size in sizes.items()})
        else:
            require_sizes(context_dim=context_dim)
            self.nets = nn.ModuleDict({"shared": _network([context_dim, width, width], len(model.sites), start)})
        self.to(next(model.parameters()).device).float()  # whatever torch's default dtype is

    @property
    def reads(self) -> frozenset[str]:
        return frozenset() if self.context_dim is None else frozenset({self.modality})

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        require_float32(self)
        with fp32(call.z.device):
            scale = self.variance(call)[..., None, None].sqrt().expand(*call.z.shape[:-1], *call.site.event)
            return dist.Normal(torch.ones_like(scale), scale, validate_args=False).to_event(2)

    def config(self) -> dict[str, Any]:
        names = ("context_dim", "modality", "width", "init_variance")
        return {name: getattr(self, name) for name in names}

    def variance(self, call: SiteCall) -> Float[Tensor, "*S B 1"]:
        """Return a of the call's layer for each of its examples."""
        key = site_key(call.site)
        if self.context_dim is None:
            return F.softplus(self.nets[key](call.z)[..., 0]) + 1e-6
        frames = frames_of(call, self.modality, self.context_dim, null_context=False)
        every = call.memo.once(self, "variance", lambda: self.nets["shared"](frames.mean()))  # type: ignore[union-attr]
        return F.softplus(every[:, self.order[key], None]) + 1e-6


def _network(sizes: list[int], outputs: int, start: float) -> nn.Sequential:
    """Linear maps with ReLU between them, whose output is ``start`` at first, whatever the input."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    last = nn.Linear(sizes[-1], outputs)
    nn.init.zeros_(last.weight)
    nn.init.constant_(last.bias, start)
    return nn.Sequential(*layers, last)
