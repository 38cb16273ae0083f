"""``PooledContext``: the posterior depends on the low-rank feature and the pooled context (CALIBER-G)."""

from __future__ import annotations

from typing import Any, ClassVar

from bayes_adapters.guides.amortised import Amortised, Context, without
from bayes_adapters.inference.model import AdapterModel


class PooledContext(Amortised):
    """``q(E_t | z_t, a) = N(E_p[E] + μ(u_t), f(g(u_t))²)``, ``u_t = [z_t ; W_v mean_s a_s]``, W_v per layer.

    Source: CALIBER-G, arXiv 2604.16657; the paper's equations are not public, this form is a reconstruction on C-LoRA.

    Args:
        model: a model with token or sequence cores.
        context_dim: d_a, width of the context's frames.
        **options: ``dim``, ``kv_sharing``, ``modality``, ``width``, ``scale``, ``null_context`` and ``reliability`` of
            :class:`Amortised`. Missing context is a learned vector (d_c) a layer.
    """

    name: ClassVar[str] = "pooled_context"

    def __init__(self, model: AdapterModel, *, context_dim: int, **options: Any) -> None:
        super().__init__(model, context=Context.GLOBAL, context_dim=context_dim, **options)

    def config(self) -> dict[str, Any]:
        return without(super().config(), "context", "heads")
