"""``FullGaussian``: a Gaussian whose entries may all correlate, within a layer or over all layers."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.distributions import Blocks, StructuredGaussian
from bayes_adapters.errors import choice, positive_number
from bayes_adapters.guides._checks import require_deviation
from bayes_adapters.guides._covariance_checks import require_memory
from bayes_adapters.inference.joint import JointGuide
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.sites import REAL, Granularity, Part


class Over(StrEnum):
    """Which entries may correlate."""

    LAYER = "layer"
    """Those of one layer, of all its random parts together."""
    ALL = "all"
    """All of all layers."""


class FullGaussian(JointGuide):
    """``q(w) = Π_k N(w_k; μ_k, L_k L_kᵀ)``: one dense covariance per layer, or one for all weights together.

    ``L_k = diag(σ_k) U_k`` with U_k lower triangular and 1 on its diagonal, so that σ is the deviation of an entry
    given those before it, and U has no unit. A block of b entries keeps b² numbers, of which the upper half stays 0.
    Exact from independent Gaussian priors N(m_i, s_i²)::

        KL = ½ Σ_i [ ((L Lᵀ)_ii + (μ_i − m_i)²) / s_i² − 1 + 2 log s_i ] − Σ_i log σ_i

    It costs O(b²) per block; a draw does too. Where the log-likelihood is quadratic in w with precision Λ (prior's
    included), the optimum over all entries is the posterior itself, covariance Λ⁻¹; mean field finds 1/Λ_ii, which is
    narrower.

    Args:
        model: a model whose random parts are weights.
        over: see :class:`Over`.
        init_scale: the standard deviation of every entry at the start, where nothing correlates.
        max_gigabytes: the largest L that is accepted. Training takes four times that: L, its gradient and two moments
            of Adam.

    Raises:
        ConfigError: L would be larger than ``max_gigabytes``; an option is out of range.

    >>> from transformers import BertConfig, BertModel
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> from bayes_adapters import Bernoulli
    >>> from bayes_adapters.models import StochasticDown
    >>> model = StochasticDown(BertModel(tiny), Bernoulli(), num_data=100, rank=2)
    >>> [tuple(value.shape) for value in FullGaussian(model).parameters()]  # 2 layers of 16 entries
    [(32,), (32,), (2, 16, 16)]
    >>> [tuple(value.shape) for value in FullGaussian(model, over="all").parameters()]
    [(32,), (32,), (1, 32, 32)]
    """

    name: ClassVar[str] = "full_gaussian"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.GLOBAL})
    parts: ClassVar[frozenset[Part]] = REAL

    def __init__(
        self,
        model: AdapterModel,
        *,
        over: Over | str = Over.LAYER,
        init_scale: float = 0.1,
        max_gigabytes: float = 1.0,
    ) -> None:
        super().__init__(model)
        self.over = choice(Over, "over", over)
        require_deviation(init_scale)
        positive_number("max_gigabytes", max_gigabytes)
        self.init_scale, self.max_gigabytes = init_scale, max_gigabytes
        blocks = self._blocks(Over.LAYER)
        needs = {Over.ALL: self.size**2, Over.LAYER: sum(places.numel() * places.shape[1] for places in blocks)}
        require_memory(self.over.value, {over.value: numbers for over, numbers in needs.items()}, max_gigabytes)
        start = self.start()
        blocks = self._blocks(self.over)
        self.register_buffer("order", torch.cat([b.flatten() for b in blocks]).to(start.device), persistent=False)
        self.loc = nn.Parameter(start)
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(init_scale)))
        """log σ, in the order of the blocks."""
        lower = [torch.zeros(*places.shape, places.shape[1], device=start.device) for places in blocks]
        self.lower = nn.ParameterList(nn.Parameter(each) for each in lower)

    def joint(self) -> TorchDistributionMixin:
        scales = self.log_scale.exp().split([each.shape[0] * each.shape[1] for each in self.lower])
        roots = []
        for lower, scale in zip(self.lower, scales, strict=True):
            unit = lower.tril(-1) + torch.eye(lower.shape[-1]).to(lower)
            roots.append(Blocks(scale.reshape(lower.shape[:2])[..., None] * unit))
        return StructuredGaussian(self.loc, roots, self.get_buffer("order"), validate_args=False)

    def config(self) -> dict[str, Any]:
        return {"over": self.over.value, "init_scale": self.init_scale, "max_gigabytes": self.max_gigabytes}

    def _blocks(self, over: Over) -> list[Int[Tensor, "K b"]]:
        """Places in w of the entries of K blocks of one size, for each size that there is."""
        if over is Over.ALL:
            return [torch.arange(self.size)[None]]
        of_layer: dict[str, list[Tensor]] = {}
        for site in self.model.sites:  # type: ignore[attr-defined]
            places = torch.arange(self.size)[self.layout[site.name]].reshape(len(site.layers), -1)
            for path, own in zip(site.layers, places, strict=True):
                of_layer.setdefault(path, []).append(own)
        whole = [torch.cat(own) for own in of_layer.values()]
        sizes = dict.fromkeys(len(own) for own in whole if len(own))
        return [torch.stack([own for own in whole if len(own) == size]) for size in sizes]
