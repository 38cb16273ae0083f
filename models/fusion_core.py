"""Random cores on the text, and a classifier on pooled text and pooled context."""

from __future__ import annotations

from typing import ClassVar

from bayes_adapters.models._late_fusion import LateFusion
from bayes_adapters.models.stochastic_core import StochasticCore


class FusionCore(LateFusion, StochasticCore):
    """``h = W₀ x + (α/r) B E A x``, ``E ~ prior``, and ``f = W₂ ReLU(W₁ [pool(h) ; mean_s a_s] + b₁) + b₂``.

    The context is a feature, in the head, whatever the guide makes of it. Under a guide that reads it as well, such as
    :class:`~bayes_adapters.guides.CrossAttention`, it also conditions the cores: CALIBER on top of late fusion. The
    prior factors, and so the KL, are those of :class:`StochasticCore`; the head and the vector that stands in for
    missing context are points and have none.

    Args:
        backbone: see :class:`bayes_adapters.AdapterModel`.
        likelihood: see :mod:`bayes_adapters.likelihoods`.
        context_dim: d_a, width of the context's frames; or modality → width of several contexts.
        modality: the key of the frames in ``Batch.context``.
        fusion_width: hidden units of the classifier, where no ``head=`` is given.
        gate: g, from 0 to 1: the head sees ``n + g (ā − n)`` for ā, n being what stands in for missing context; see
            :func:`bayes_adapters.reliability.choose_gate`.
        **options: options of :class:`StochasticCore`.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, Frames, predict
    >>> from bayes_adapters.guides import CrossAttention
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = FusionCore(BertModel(tiny), Bernoulli(), context_dim=6, rank=2)
    >>> guide = CrossAttention(model, context_dim=6, dim=8)
    >>> audio = Frames(torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool))
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])}, context={"audio": audio})
    >>> predict(model, guide, batch, num_samples=4).probs.shape
    torch.Size([2])
    """

    structure: ClassVar[str] = "fusion_core"
