"""Late fusion: plain LoRA on the text, and a classifier on pooled text and pooled context."""

from __future__ import annotations

from typing import ClassVar

from bayes_adapters.models._late_fusion import LateFusion
from bayes_adapters.models.lora import LoRA


class FusionLoRA(LateFusion, LoRA):
    """``f = W₂ ReLU(W₁ [pool(text) ; mean_s a_s])`` on top of plain LoRA; missing context is a learned vector.

    The fusion control of CALIBER: it sees the context, but its adapters do not.

    Args:
        backbone: see :class:`bayes_adapters.AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        context_dim: d_a, width of the context's frames; or modality → width of several contexts.
        modality: the key of the frames in ``Batch.context``.
        fusion_width: hidden units of the classifier.
        gate: g, from 0 to 1: the classifier sees ``n + g (ā − n)`` for ā, n being the learned vector; see
            :func:`bayes_adapters.reliability.choose_gate`.
        **options: options of :class:`LoRA`.

    >>> import torch
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
