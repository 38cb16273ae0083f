"""``PooledContext``: the posterior depends on the low-rank feature and the pooled context (CALIBER-G)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayes_adapters.batch import Frames
from bayes_adapters.errors import choice
from bayes_adapters.guide import AdapterGuide, site_key
from bayes_adapters.guides._context import as_reliability, frames_of, require_sizes
from bayes_adapters.guides._head import PosteriorHead, ScaleTransform, fp32
from bayes_adapters.model import AdapterModel
from bayes_adapters.reliability import Reliability
from bayes_adapters.sites import Granularity, SiteCall


class PooledContext(AdapterGuide):
    """``q(E_t | z_t, a) = N(μ(u_t), f(g(u_t))²)``, ``u_t = [z_t ; W_v mean_s a_s]``, W_v per layer.

    Source: CALIBER-G, arXiv 2604.16657; the paper's equations are not public, this form is a reconstruction on C-LoRA.

    Args:
        model: a model with token or sequence sites.
        context_dim: d_a, width of the context's frames.
        dim: d_c, width of the projected context.
        modality: the key of the frames in ``Batch.context``.
        width: hidden units of the posterior network.
        scale: ``"sigmoid_squared"`` or ``"softplus"``.
        null_context: learn a vector (d_c) per layer that stands in for missing context; without it that is an error.
        reliability: makes the posterior less sure where a context is far from those of training (see
            :class:`bayes_adapters.reliability.Reliability`). None trusts every context.
    """

    name: ClassVar[str] = "pooled_context"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.TOKEN, Granularity.SEQUENCE})

    def __init__(
        self,
        model: AdapterModel,
        *,
        context_dim: int,
        dim: int = 64,
        modality: str = "audio",
        width: int = 64,
        scale: ScaleTransform | str = ScaleTransform.SIGMOID_SQUARED,
        null_context: bool = True,
        reliability: Reliability | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model)
        require_sizes(context_dim=context_dim, dim=dim)
        self.context_dim, self.dim, self.modality, self.width = context_dim, dim, modality, width
        self.scale, self.null_context = choice(ScaleTransform, "scale", scale), null_context
        self.reliability = as_reliability(reliability, context_dim, model)
        keys = [site_key(s) for s in model.sites]
        self.value = nn.ModuleDict({k: nn.Linear(context_dim, dim, bias=False) for k in keys})
        self.null = nn.ParameterDict({k: nn.Parameter(torch.zeros(dim)) for k in keys} if null_context else {})
        self.heads = nn.ModuleDict(
            {site_key(s): PosteriorHead(s.rank + dim, s.rank, width, self.scale) for s in model.sites}
        )

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        frames = frames_of(call, self.modality, self.context_dim, self.null_context)
        key = site_key(call.site)
        with fp32(call.z.device):
            context = self._context(key, frames, call)
            u = torch.cat([call.z, context[:, None].expand(*call.z.shape[:-1], self.dim)], -1)
            posterior = self.heads[key](u, prior)
            return posterior if self.reliability is None else self.reliability(posterior, prior, frames, call.scratch)

    def _context(self, key: str, frames: Frames | None, call: SiteCall) -> Float[Tensor, "B c"]:
        if frames is None:
            return self.null[key].expand(call.z.shape[-3], self.dim)
        pooled = call.scratch.get("pooled")
        if pooled is None:
            pooled = call.scratch["pooled"] = frames.mean()
        context = self.value[key](pooled)
        return torch.where(frames.present[:, None], context, self.null[key]) if self.null_context else context

    def config(self) -> dict[str, Any]:
        return {
            "context_dim": self.context_dim,
            "dim": self.dim,
            "modality": self.modality,
            "width": self.width,
            "scale": self.scale.value,
            "null_context": self.null_context,
            "reliability": None if self.reliability is None else self.reliability.config(),
        }
