"""``CrossAttention``: each token's posterior attends over the context's frames (CALIBER-X and its shared-KV branch)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bayes_adapters.guides.amortised import Amortised, Context, KVSharing, without
from bayes_adapters.inference.model import AdapterModel


class CrossAttention(Amortised):
    """``q(E_t | z_t, a) = N(E_p[E] + μ(u_t), f(g(u_t))²)``, ``u_t = [z_t ; c_t]``, c_t an attention over the frames.

    The attention is :class:`bayes_adapters.guides._readers.AttentionReader`: ``q_t = W_q z_t``, ``k_s = W_k a_s``,
    ``v_s = W_v a_s``, ``c_t = Σ_s softmax_s(q_t · k_s / sqrt(d_c / H)) v_s``, with a learned pair (k_0, v_0) among the
    frames when ``null_context``. The frames carry whatever positions their encoder gave them.

    With ``scale=None`` it is a deterministic cross-attention, ``E_t = E_p[E] + μ(u_t)``: the control that says what of
    CALIBER-X is its posterior.

    Source: CALIBER-X, arXiv 2604.16657; the paper's equations are not public, this form is a reconstruction on C-LoRA.

    Args:
        model: a model with token or sequence cores.
        context_dim: d_a, width of the context's frames; or modality → width of several contexts.
        share_kv: one (W_k, W_v, null pair) for the whole network instead of one per layer.
        **options: ``dim``, ``heads``, ``modality``, ``width``, ``scale``, ``null_context``, ``reliability`` and
            ``gate`` of :class:`Amortised`.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, Frames, predict
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2)
    >>> guide = CrossAttention(model, context_dim=6, dim=8, heads=2, share_kv=True)
    >>> audio = Frames(torch.randn(2, 9, 6), torch.ones(2, 9, dtype=torch.bool))
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])}, context={"audio": audio})
    >>> predict(model, guide, batch, num_samples=4).mean.shape
    torch.Size([2])
    """

    name: ClassVar[str] = "cross_attention"

    def __init__(
        self, model: AdapterModel, *, context_dim: int | Mapping[str, int], share_kv: bool = False, **options: Any
    ) -> None:
        sharing = KVSharing.SHARED if share_kv else KVSharing.PER_MODULE
        super().__init__(model, context=Context.CROSS_ATTENTION, context_dim=context_dim, kv_sharing=sharing, **options)

    @property
    def share_kv(self) -> bool:
        """Whether layers share their key and value projections."""
        return self.kv_sharing is KVSharing.SHARED

    def config(self) -> dict[str, Any]:
        return without(super().config(), "context", "kv_sharing") | {"share_kv": self.share_kv}
