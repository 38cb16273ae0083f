"""``LateFusion``: what makes a structure's head see the pooled context beside the pooled hidden states."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.data._checks import one_modality
from bayes_adapters.data.batch import Batch, find_frames
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

    Args:
        backbone: see :class:`bayes_adapters.AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        context_dim: d_a, width of the context's frames.
        modality: the key of the frames in ``Batch.context``.
        fusion_width: hidden units of the default head.
        **options: options of the structure.
    """

    def __init__(
        self,
        backbone: nn.Module,
        likelihood: Likelihood,
        *,
        context_dim: int,
        modality: str = "audio",
        fusion_width: int = _WIDTH,
        **options: Any,
    ) -> None:
        whole_number("context_dim", context_dim)
        whole_number("fusion_width", fusion_width)
        self.context_dim, self.modality, self.fusion_width = context_dim, one_modality(modality), fusion_width
        super().__init__(backbone, likelihood, **options)
        self.null = nn.Parameter(torch.zeros(context_dim, device=next(backbone.parameters()).device))

    @property
    def reads(self) -> frozenset[str]:
        return super().reads | {self.modality}

    def default_head(self, pooling: Pooling | str | None) -> Head:
        return TwoLayerHead(self.fusion_width, pooling=pooling)

    def require_fitting(self, head: Head, likelihood: Likelihood) -> None:
        super().require_fitting(head, likelihood)
        if not self.own_head and self.fusion_width != _WIDTH:
            raise ConfigError(f"fusion_width={self.fusion_width} has no effect where head= is given.")

    def feature_width(self, backbone: nn.Module) -> int:
        return super().feature_width(backbone) + self.context_dim

    def outputs(
        self, features: Float[Tensor, "rows *T d"], batch: Batch
    ) -> Float[Tensor, "rows *T K"] | GaussianOutputs:
        frames = find_frames(batch.context, self.modality, self.context_dim, "model")
        if frames is None:
            context = self.null.expand(batch.size, self.context_dim)
        else:
            context = torch.where(frames.present[:, None], frames.mean(), self.null)
        context = context.repeat(features.shape[0] // batch.size, 1)
        if features.dim() == 3:
            context = context[:, None].expand(-1, features.shape[1], -1)
        return super().outputs(torch.cat([features.to(context.dtype), context], -1), batch)

    def config(self) -> dict[str, Any]:
        extra = {"context_dim": self.context_dim, "modality": self.modality, "fusion_width": self.fusion_width}
        return super().config() | extra
