"""C-LoRA and CALIBER-X without Pyro: the network and loss one would write by hand, to measure what Pyro adds.

Nothing here uses ``bayes_adapters`` but to copy a model's initial weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters import AdapterGuide, AdapterModel, Batch, adapted_layers
from bayes_adapters.guides import CrossAttention

PRIOR_SCALE = 0.2


@dataclass
class _Call:
    """What the layers of one pass share: token mask (B, T), frames (B, F, d_a), their mask, and the KL so far."""

    mask: Tensor
    frames: Tensor | None
    frame_mask: Tensor | None
    kl: Tensor


class _Layer(nn.Module):
    """``h = W x + s B E A x`` with ``E ~ N(μ(u), σ(u)²)`` per token, u = z or [z ; attention over the frames]."""

    def __init__(self, base: nn.Module, scaling: float, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.call: Any = None  # the :class:`_Call` of the pass that is under way
        self.p = nn.ParameterDict({name: nn.Parameter(value.detach().clone()) for name, value in weights.items()})

    def forward(self, x: Tensor) -> Tensor:
        call, p = self.call, self.p
        assert isinstance(call, _Call)
        z = F.linear(x, p["A"])
        u = z if call.frames is None else torch.cat([z, self._attend(z, call)], -1)
        out = F.linear(F.relu(F.linear(u, p["w1"], p["b1"])), p["w2"], p["b2"])
        rank = z.shape[-1]
        mean, g = out.view(*z.shape[:-1], 2, rank, rank).unbind(-3)
        sigma = torch.sigmoid(g).square().clamp_min(1e-6)
        core = mean + sigma * torch.randn_like(sigma)
        ratio = (sigma / PRIOR_SCALE).square()
        kl = 0.5 * (ratio + (mean / PRIOR_SCALE).square() - 1 - ratio.log())
        call.kl = call.kl + (kl.sum((-2, -1)) * call.mask).sum()
        return self.base(x) + self.scaling * F.linear((core * z[..., None, :]).sum(-1), p["B"])

    def _attend(self, z: Tensor, call: _Call) -> Tensor:
        p, rows = self.p, z.shape[0]
        assert call.frames is not None
        assert call.frame_mask is not None
        null = p["null"][:, None, None].expand(2, rows, 1, -1)
        keys = torch.cat([F.linear(call.frames, p["key"]), null[0]], 1)
        values = torch.cat([F.linear(call.frames, p["value"]), null[1]], 1)
        query = F.linear(z, p["query"])
        mask = call.frame_mask[:, None, None]
        return F.scaled_dot_product_attention(query[:, None], keys[:, None], values[:, None], attn_mask=mask)[:, 0]


class HandWritten(nn.Module):
    """The same network as a model and guide of the library, with a copy of their weights.

    Args:
        model: with a token core per layer, N(0, 0.2²) prior, mean pooling and a Bernoulli likelihood.
        guide: ``Contextual`` or ``CrossAttention`` with one head.
        backbone: frozen, with the weights that ``model`` was built on; changed in place. It may be the model's own,
            whose adapters are then replaced.
    """

    def __init__(self, model: Any, guide: AdapterGuide, backbone: nn.Module) -> None:
        super().__init__()
        self.reads_frames = isinstance(guide, CrossAttention)
        self.layers: list[_Layer] = []
        for path, adapted in adapted_layers(model.backbone).items():
            base = backbone.get_submodule(path)
            layer = _Layer(getattr(base, "base_layer", base), adapted.scaling, self._copy(adapted, guide, path))
            backbone.set_submodule(path, layer)
            self.layers.append(layer)
        self.backbone = backbone
        self.head = nn.Linear(model.head.weight.shape[1], 1).to(model.head.weight.device)
        self.head.load_state_dict(model.head.state_dict())

    def _copy(self, adapted: nn.Module, guide: Any, path: str) -> dict[str, Tensor]:
        key = f"core.{path}".replace(".", "-")
        first, _, second = guide.heads[key].net
        weights = {"A": adapted.lora_A, "B": adapted.lora_B, "w1": first.weight, "b1": first.bias}
        weights |= {"w2": second.weight, "b2": second.bias}
        if self.reads_frames:
            weights |= {"query": guide.reader.query[key].weight, "key": guide.reader.key[key].weight}
            weights |= {"value": guide.reader.value[key].weight, "null": guide.reader.null[key]}
        return weights

    def forward(self, batch: Batch, kl_weight: float) -> Tensor:
        """Return ``(1/B) [Σ_b BCE_b + w Σ_layers Σ_real tokens KL]``, nats per datum."""
        inputs, mask = batch.inputs, batch.inputs["attention_mask"]
        assert isinstance(batch.targets, Tensor)
        frames = frame_mask = None
        if self.reads_frames:
            audio = batch.context["audio"]
            frames = audio.values
            frame_mask = F.pad(audio.mask, (0, 1), value=True)  # the null pair is always there
        call = _Call(mask.to(torch.float32), frames, frame_mask, torch.zeros((), device=mask.device))
        for layer in self.layers:
            layer.call = call
        hidden = self.backbone(**inputs).last_hidden_state
        weight = call.mask[..., None]
        pooled = (hidden * weight).sum(1) / weight.sum(1)
        nll = F.binary_cross_entropy_with_logits(self.head(pooled)[:, 0], batch.targets)
        return nll + kl_weight * call.kl / batch.size

    def gradients(self) -> list[Any]:
        """Gradients in the order of :meth:`matching_gradients`."""
        return [layer.p[k].grad for layer in self.layers for k in sorted(layer.p)] + [
            p.grad for p in self.head.parameters()
        ]

    def matching_gradients(self, model: AdapterModel, guide: AdapterGuide) -> list[Any]:
        """The library's gradients of the same tensors."""
        parts = [self._copy(adapted, guide, path) for path, adapted in adapted_layers(model.backbone).items()]
        return [weights[k].grad for weights in parts for k in sorted(weights)] + [
            p.grad for p in model.head.parameters()
        ]


def disagreement(ours: list[Tensor], others: list[Tensor]) -> float:
    """The largest ``max |a − b| / max |b|`` over pairs of tensors (0 where both are zero); infinite if one is NaN."""
    worst = 0.0
    for a, b in zip(ours, others, strict=True):
        size = float(b.abs().max())
        off = float((a.to(b.device) - b).abs().max())
        value = 0.0 if off == 0.0 else off / size if size else math.inf
        worst = max(worst, math.inf if math.isnan(off) else value)
    return worst
