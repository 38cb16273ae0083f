"""``PooledContext``: the posterior depends on the low-rank feature and the pooled context (CALIBER-G)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bayes_adapters.guides.amortised import Amortised, Context, without
from bayes_adapters.inference.model import AdapterModel


class PooledContext(Amortised):
    """``q(E_t | z_t, a) = N(E_p[E] + μ(u_t), f(g(u_t))²)``, ``u_t = [z_t ; W_v mean_s a_s]``, W_v per layer.

    Source: CALIBER-G, arXiv 2604.16657; the paper's equations are not public, this form is a reconstruction on C-LoRA.

    Args:
        model: a model with token or sequence cores.
        context_dim: d_a, width of the context's frames; or modality → width of several contexts.
        **options: ``dim``, ``kv_sharing``, ``modality``, ``width``, ``scale``, ``null_context``, ``reliability`` and
            ``gate`` of :class:`Amortised`. Missing context is a learned vector (d_c) per layer.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, Frames, predict
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2)
    >>> audio = Frames(torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool))
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])}, context={"audio": audio})
    >>> predict(model, PooledContext(model, context_dim=6), batch, num_samples=4).mean.shape
    torch.Size([2])
    """

    name: ClassVar[str] = "pooled_context"

    def __init__(self, model: AdapterModel, *, context_dim: int | Mapping[str, int], **options: Any) -> None:
        super().__init__(model, context=Context.GLOBAL, context_dim=context_dim, **options)

    def config(self) -> dict[str, Any]:
        return without(super().config(), "context", "heads")
