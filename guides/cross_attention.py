"""``CrossAttention``: each token's posterior attends over the context's frames (CALIBER-X and its shared-KV branch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.batch import Frames
from bayes_adapters.diagnostics import record
from bayes_adapters.errors import ConfigError, choice
from bayes_adapters.guide import AdapterGuide, site_key
from bayes_adapters.guides._context import as_reliability, frames_of, require_sizes
from bayes_adapters.guides._head import PosteriorHead, ScaleTransform, fp32
from bayes_adapters.model import AdapterModel
from bayes_adapters.reliability import Reliability
from bayes_adapters.sites import Granularity, SiteCall

_SHARED = "shared"


class CrossAttention(AdapterGuide):
    """``q(E_t | z_t, a) = N(μ(u_t), f(g(u_t))²)``, ``u_t = [z_t ; c_t]``, c_t an attention over the frames.

    ::

        q_t = W_q z_t        k_s = W_k a_s        v_s = W_v a_s
        w_ts = softmax_s( q_t · k_s / sqrt(d_c / H) ),  masked frames excluded
        c_t  = Σ_s w_ts v_s

    With ``null_context`` a learned pair (k_0, v_0) joins the frames: it is all there is to attend to when the context
    is missing, and lets a token ignore a corrupted one. The frames carry whatever positions their encoder gave them.

    Source: CALIBER-X, arXiv 2604.16657; the paper's equations are not public, this form is a reconstruction on C-LoRA.

    Args:
        model: a model with token or sequence sites.
        context_dim: d_a, width of the context's frames.
        dim: d_c, width of queries, keys and values.
        heads: H; must divide ``dim``.
        share_kv: one (W_k, W_v, null pair) for the whole network instead of one per layer.
        modality: the key of the frames in ``Batch.context``.
        width: hidden units of the posterior network.
        scale: ``"sigmoid_squared"`` or ``"softplus"``.
        null_context: learn the null pair; without it missing context is an error.
        reliability: makes the posterior less sure where a context is far from those of training (see
            :class:`bayes_adapters.reliability.Reliability`). None trusts every context.
    """

    name: ClassVar[str] = "cross_attention"
    serves: ClassVar[frozenset[Granularity]] = frozenset({Granularity.TOKEN, Granularity.SEQUENCE})

    def __init__(
        self,
        model: AdapterModel,
        *,
        context_dim: int,
        dim: int = 64,
        heads: int = 1,
        share_kv: bool = False,
        modality: str = "audio",
        width: int = 64,
        scale: ScaleTransform | str = ScaleTransform.SIGMOID_SQUARED,
        null_context: bool = True,
        reliability: Reliability | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model)
        require_sizes(context_dim=context_dim, dim=dim, heads=heads)
        if dim % heads:
            raise ConfigError(f"heads must divide dim; got heads={heads}, dim={dim}.")
        self.context_dim, self.dim, self.num_heads, self.share_kv = context_dim, dim, heads, share_kv
        self.modality, self.width, self.null_context = modality, width, null_context
        self.scale = choice(ScaleTransform, "scale", scale)
        self.reliability = as_reliability(reliability, context_dim, model)
        keys = [site_key(s) for s in model.sites]
        kv_keys = [_SHARED] if share_kv else keys
        self.query = nn.ModuleDict({site_key(s): nn.Linear(s.rank, dim, bias=False) for s in model.sites})
        self.key = nn.ModuleDict({k: nn.Linear(context_dim, dim, bias=False) for k in kv_keys})
        self.value = nn.ModuleDict({k: nn.Linear(context_dim, dim, bias=False) for k in kv_keys})
        self.null = nn.ParameterDict({k: nn.Parameter(torch.zeros(2, dim)) for k in kv_keys} if null_context else {})
        self.heads = nn.ModuleDict(
            {site_key(s): PosteriorHead(s.rank + dim, s.rank, width, self.scale) for s in model.sites}
        )

    def posterior(self, call: SiteCall, prior: TorchDistributionMixin) -> TorchDistributionMixin:
        frames = frames_of(call, self.modality, self.context_dim, self.null_context)
        key = site_key(call.site)
        with fp32(call.z.device):
            posterior = self.heads[key](torch.cat([call.z, self._attend(key, frames, call)], -1), prior)
            return posterior if self.reliability is None else self.reliability(posterior, prior, frames, call.scratch)

    def _attend(self, site: str, frames: Frames | None, call: SiteCall) -> Float[Tensor, "*S B T c"]:
        *outer, size, length, _ = call.z.shape
        keys, values, mask = self._keys_values(_SHARED if self.share_kv else site, frames, call)
        query = self.query[site](call.z).reshape(-1, size, length, self.dim)
        samples = query.shape[0]
        query = self._split(query.transpose(0, 1).reshape(size, samples * length, self.dim))
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None, None])
        record("attention_entropy", call.site.name, lambda: _attention_entropy(query, keys, mask))
        out = attended.transpose(1, 2).reshape(size, samples, length, self.dim).transpose(0, 1)
        return out.reshape(*outer, size, length, self.dim)

    def _keys_values(
        self, key: str, frames: Frames | None, call: SiteCall
    ) -> tuple[Float[Tensor, "B H F h"], Float[Tensor, "B H F h"], Bool[Tensor, "B F"]]:
        if f"{key}.k" in call.scratch:
            return call.scratch[f"{key}.k"], call.scratch[f"{key}.v"], call.scratch[f"{key}.mask"]
        size, dim, keys, values, masks = call.z.shape[-3], self.dim, [], [], []
        if frames is not None:
            context = frames.values.float()
            keys.append(self.key[key](context))
            values.append(self.value[key](context))
            masks.append(frames.mask)
        if self.null_context:
            null_key, null_value = self.null[key]
            keys.append(null_key.expand(size, 1, dim))
            values.append(null_value.expand(size, 1, dim))
            masks.append(torch.ones(size, 1, dtype=torch.bool, device=call.z.device))
        k, v, mask = self._split(torch.cat(keys, 1)), self._split(torch.cat(values, 1)), torch.cat(masks, 1)
        call.scratch.update({f"{key}.k": k, f"{key}.v": v, f"{key}.mask": mask})
        return k, v, mask

    def _split(self, x: Float[Tensor, "B n c"]) -> Float[Tensor, "B H n h"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def config(self) -> dict[str, Any]:
        return {
            "context_dim": self.context_dim,
            "dim": self.dim,
            "heads": self.num_heads,
            "share_kv": self.share_kv,
            "modality": self.modality,
            "width": self.width,
            "scale": self.scale.value,
            "null_context": self.null_context,
            "reliability": None if self.reliability is None else self.reliability.config(),
        }


def _attention_entropy(query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Entropy of the attention weights in nats, shape (B, H, n): 0 = one frame, log F = uniform."""
    scores = query @ keys.mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    return torch.special.entr(weights).sum(-1)
