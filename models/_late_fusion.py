"""``LateFusion``: what makes a structure's head see the pooled context beside the pooled hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.data.batch import Batch, find_frames
from bayes_adapters.data.contexts import as_given, context_gates, context_widths, gate_option, module_key
from bayes_adapters.distributions import TokenLogits
from bayes_adapters.errors import ConfigError, whole_number
from bayes_adapters.heads import Head, Pooling, TwoLayerHead
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.likelihoods import GaussianOutputs, Likelihood

_WIDTH = 256


class LateFusion(AdapterModel):
    """``f = head([pool(h) ; ā])``, ā the mean of the example's real frames, or a learned vector where there are none.

    For structures, in front of what they are: ``class FusionLoRA(LateFusion, LoRA)``. What is random stays theirs, and
    any guide of theirs serves. The learned vector, (d_a,), is a point and starts at 0. The default head has two layers:
    ``W₂ ReLU(W₁ [pool(h) ; ā] + b₁) + b₂``. A head given as ``head=`` sees the same d + d_a numbers. Where there is one
    target per token, every token has the same ā beside it. An example's ā depends on no other example.

    Several contexts, ``context_dim={"audio": 384, "image": 768}``, stand side by side in the order of their names, each
    with a learned vector of its own. ``gate=g`` lets a context count less than training made of it:
    ``ā ← n + g (ā − n)``, n its learned vector; see :func:`bayes_adapters.reliability.choose_gate`.

    Args:
        backbone: see :class:`bayes_adapters.AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        context_dim: d_a, width of the context's frames, or modality → width of several contexts.
        modality: the key of the frames in ``Batch.context``, where ``context_dim`` does not name them.
        fusion_width: hidden units of the default head.
        gate: g, from 0 to 1, or modality → g of several contexts.
        **options: options of the structure.
    """

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        context_dim: int | Mapping[str, int],
        modality: str = "audio",
        fusion_width: int = _WIDTH,
        gate: float | Mapping[str, float] = 1.0,
        **options: Any,
    ) -> None:
        whole_number("fusion_width", fusion_width)
        self.widths, self.fusion_width = context_widths(context_dim, modality), fusion_width
        self.modality = next(iter(self.widths)) if len(self.widths) == 1 else modality
        self.gate = context_gates(gate, self.widths, True)
        super().__init__(backbone, likelihood, **options)
        device = next(backbone.parameters()).device
        nulls = {module_key(name): nn.Parameter(torch.zeros(d, device=device)) for name, d in self.widths.items()}
        self.null = nn.ParameterDict(nulls) if len(nulls) > 1 else next(iter(nulls.values()))

    @property
    def context_dim(self) -> int | dict[str, int]:
        """d_a of the one context, or modality → d_a."""
        return as_given(self.widths)

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | set(self.widths)

    def default_head(self, pooling: Pooling | str | None) -> Head:
        return TwoLayerHead(self.fusion_width, pooling=pooling)

    def require_fitting(self, head: Head, likelihood: Likelihood) -> None:
        super().require_fitting(head, likelihood)
        if not self.own_head and self.fusion_width != _WIDTH:
            raise ConfigError(f"fusion_width={self.fusion_width} has no effect where head= is given.")

    def feature_width(self, backbone: nn.Module) -> int:
        return super().feature_width(backbone) + sum(self.widths.values())

    def outputs(
        self, features: Float[Tensor, "rows *T d"], batch: Batch
    ) -> Float[Tensor, "rows *T K"] | GaussianOutputs | TokenLogits:
        context = torch.cat([self._pooled(name, batch) for name in self.widths], -1)
        context = context.repeat(features.shape[0] // batch.size, 1)
        if features.dim() == 3:
            context = context[:, None].expand(-1, features.shape[1], -1)
        return super().outputs(torch.cat([features.to(context.dtype), context], -1), batch)

    def _pooled(self, name: str, batch: Batch) -> Float[Tensor, "B d"]:
        """Return each example's mean frame of the context ``name``, as far as its gate is open."""
        frames = find_frames(batch.context, name, self.widths[name], "model", self.widths)
        null = self.null[module_key(name)] if isinstance(self.null, nn.ParameterDict) else self.null
        absent, gate = null.expand(batch.size, -1), self.gate[name]
        if frames is None or gate == 0.0:
            return absent
        context = torch.where(frames.present[:, None], frames.mean(), null)
        return context if gate == 1.0 else torch.lerp(absent.to(context.dtype), context, gate)

    def config(self) -> dict[str, Any]:
        extra = {"context_dim": self.context_dim, "modality": self.modality, "fusion_width": self.fusion_width}
        return super().config() | extra | gate_option(self.gate, self.widths, True)
