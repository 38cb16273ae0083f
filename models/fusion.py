"""Late fusion: plain LoRA on the text, and a classifier on pooled text and pooled context."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.data._checks import one_modality
from bayes_adapters.data.batch import Batch, find_frames
from bayes_adapters.errors import ConfigError, whole_number
from bayes_adapters.heads import Head, Pooling, TwoLayerHead
from bayes_adapters.likelihoods import GaussianOutputs, Likelihood
from bayes_adapters.models.lora import LoRA

_WIDTH = 256


class FusionLoRA(LoRA):
    """``f = W₂ ReLU(W₁ [pool(text) ; mean_s a_s])`` on top of plain LoRA; missing context is a learned vector.

    The fusion control of CALIBER: it sees the context, but its adapters do not.

    Args:
        backbone: see :class:`bayes_adapters.AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        context_dim: d_a, width of the context's frames.
        modality: the key of the frames in ``Batch.context``.
        fusion_width: hidden units of the classifier.
        **options: options of :class:`LoRA`.

    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, Frames
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = FusionLoRA(BertModel(tiny), Bernoulli(), context_dim=6, rank=2)
    >>> audio = Frames(torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool))
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])}, context={"audio": audio})
    >>> sorted(model.reads), model(batch).shape
    (['audio'], torch.Size([2, 1]))
    """

    structure: ClassVar[str] = "fusion_lora"

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
        return frozenset({self.modality})

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
