"""How an amortised guide reads the context: a vector of width d_c for every token, or for every example."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.analysis.diagnostics import record
from bayes_adapters.data.batch import Frames
from bayes_adapters.sites import SiteCall

SHARED = "shared"
"""The key of a projection that all layers share."""


class PooledReader(nn.Module):
    """``c = W_v mean_s a_s``, one vector per example; W_v one per layer or one for the whole network.

    Args:
        keys: one per layer.
        context_dim: d_a.
        dim: d_c.
        shared: one W_v for all layers.
        null_context: learn the vector that stands in for missing context.
    """

    def __init__(self, keys: Sequence[str], context_dim: int, dim: int, shared: bool, null_context: bool) -> None:
        super().__init__()
        self.dim, self.shared = dim, shared
        own = [SHARED] if shared else list(keys)
        self.value = nn.ModuleDict({k: nn.Linear(context_dim, dim, bias=False) for k in own})
        self.null = nn.ParameterDict({k: nn.Parameter(torch.zeros(dim)) for k in own} if null_context else {})

    def absent(self, key: str) -> Float[Tensor, " c"]:
        """Return what the layer ``key`` reads where the context is missing."""
        return self.null[SHARED if self.shared else key]

    def forward(self, key: str, frames: Frames | None, call: SiteCall) -> Float[Tensor, "*S B T c"]:
        """Return the context of the layer ``key`` for every token."""
        key = SHARED if self.shared else key
        if frames is None:
            context = self.null[key].expand(call.z.shape[-3], self.dim)
        else:
            context = self.value[key](_pooled(self, frames, call))
            if key in self.null:
                context = torch.where(frames.present[:, None], context, self.null[key])
        return context[:, None].expand(*call.z.shape[:-1], self.dim)


class ProjectedReader(nn.Module):
    """``g = W_g mean_s a_s + b_g`` once for the network, ``c^l = W^l g + b^l`` for layer l; a missing g is learned.

    Args:
        keys: one per layer.
        context_dim: d_a.
        dim: d_c.
        null_context: learn the g that stands in for missing context.
    """

    def __init__(self, keys: Sequence[str], context_dim: int, dim: int, null_context: bool) -> None:
        super().__init__()
        self.dim = dim
        self.projection = nn.Linear(context_dim, dim)
        self.layers = nn.ModuleDict({k: nn.Linear(dim, dim) for k in keys})
        self.null = nn.ParameterDict({SHARED: nn.Parameter(torch.zeros(dim))} if null_context else {})

    def absent(self, key: str) -> Float[Tensor, " c"]:
        """Return what the layer ``key`` reads where the context is missing."""
        found: Tensor = self.layers[key](self.null[SHARED])
        return found

    def forward(self, key: str, frames: Frames | None, call: SiteCall) -> Float[Tensor, "*S B T c"]:
        """Return the context of the layer ``key`` for every token."""
        context = self.layers[key](call.memo.once(self, "projected", lambda: self._global(frames, call)))
        return context[:, None].expand(*call.z.shape[:-1], self.dim)

    def _global(self, frames: Frames | None, call: SiteCall) -> Float[Tensor, "B c"]:
        if frames is None:
            return self.null[SHARED].expand(call.z.shape[-3], self.dim)
        projected = self.projection(_pooled(self, frames, call))
        return torch.where(frames.present[:, None], projected, self.null[SHARED]) if SHARED in self.null else projected


class AttentionReader(nn.Module):
    """Each token attends over the frames.

    ::

        q_t = W_q z_t        k_s = W_k a_s        v_s = W_v a_s
        w_ts = softmax_s( q_t · k_s / sqrt(d_c / H) ),  masked frames excluded
        c_t  = Σ_s w_ts v_s

    A learned pair (k_0, v_0) may join the frames: it is all there is to attend to when the context is missing, and lets
    a token ignore a corrupted one.

    Args:
        ranks: layer's key → r.
        context_dim: d_a.
        dim: d_c.
        heads: H, which divides ``dim``.
        shared: one (W_k, W_v, null pair) for all layers.
        null_context: learn the null pair.
        context: the name under which entropies are recorded beside the site's, where there are several contexts.
    """

    def __init__(
        self,
        ranks: dict[str, int],
        context_dim: int,
        dim: int,
        heads: int,
        shared: bool,
        null_context: bool,
        context: str = "",
    ) -> None:
        super().__init__()
        self.dim, self.num_heads, self.shared, self.context = dim, heads, shared, context
        own = [SHARED] if shared else list(ranks)
        self.query = nn.ModuleDict({k: nn.Linear(r, dim, bias=False) for k, r in ranks.items()})
        self.key = nn.ModuleDict({k: nn.Linear(context_dim, dim, bias=False) for k in own})
        self.value = nn.ModuleDict({k: nn.Linear(context_dim, dim, bias=False) for k in own})
        self.null = nn.ParameterDict({k: nn.Parameter(torch.zeros(2, dim)) for k in own} if null_context else {})

    def absent(self, key: str) -> Float[Tensor, " c"]:
        """Return what each token reads at the layer ``key`` where the context is missing: the null value."""
        return self.null[SHARED if self.shared else key][1]

    def forward(self, key: str, frames: Frames | None, call: SiteCall) -> Float[Tensor, "*S B T c"]:
        """Return each token's context at the layer ``key``."""
        *outer, size, length, _ = call.z.shape
        source = SHARED if self.shared else key
        keys, values, mask = call.memo.once(self, source, lambda: self._keys_values(source, frames, call))
        query = self.query[key](call.z).reshape(-1, size, length, self.dim)
        samples = query.shape[0]
        query = self._split(query.transpose(0, 1).reshape(size, samples * length, self.dim))
        attended = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[:, None, None])
        record(
            "attention_entropy",
            f"{call.site.name} {self.context}".rstrip(),
            lambda: _of_real_tokens(_attention_entropy(query, keys, mask).unflatten(-1, (samples, length)), call),
        )
        out = attended.transpose(1, 2).reshape(size, samples, length, self.dim).transpose(0, 1)
        return out.reshape(*outer, size, length, self.dim)

    def _keys_values(
        self, key: str, frames: Frames | None, call: SiteCall
    ) -> tuple[Float[Tensor, "B H F h"], Float[Tensor, "B H F h"], Bool[Tensor, "B F"]]:
        size, dim, keys, values, masks = call.z.shape[-3], self.dim, [], [], []
        if frames is not None:
            context = frames.values.float()
            keys.append(self.key[key](context))
            values.append(self.value[key](context))
            masks.append(frames.mask)
        if key in self.null:
            null_key, null_value = self.null[key]
            keys.append(null_key.expand(size, 1, dim))
            values.append(null_value.expand(size, 1, dim))
            masks.append(torch.ones(size, 1, dtype=torch.bool, device=call.z.device))
        return self._split(torch.cat(keys, 1)), self._split(torch.cat(values, 1)), torch.cat(masks, 1)

    def _split(self, x: Float[Tensor, "B n c"]) -> Float[Tensor, "B H n h"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _pooled(reader: nn.Module, frames: Frames, call: SiteCall) -> Float[Tensor, "B d"]:
    return call.memo.once(reader, "pooled", frames.mean)


def _attention_entropy(query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Entropy of the attention weights in nats, shape (B, H, n): 0 = one frame, log F = uniform."""
    scores = query @ keys.mT / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    return torch.special.entr(weights).sum(-1)


def _of_real_tokens(value: Float[Tensor, "B H S T"], call: SiteCall) -> Float[Tensor, "_ H S"]:
    by_token = value.permute(0, 3, 1, 2)
    return by_token.flatten(0, 1) if call.token_mask is None else by_token[call.token_mask]
