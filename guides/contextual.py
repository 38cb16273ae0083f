"""``Contextual``: the core's posterior depends on this layer's own low-rank feature (C-LoRA)."""

from __future__ import annotations

from typing import Any, ClassVar

from bayes_adapters.guides._head import ScaleTransform
from bayes_adapters.guides.amortised import Amortised, Context
from bayes_adapters.inference.model import AdapterModel


class Contextual(Amortised):
    """``q(E_t | z_t) = N(E_p[E] + μ(z_t), f(g(z_t))²)`` with ``z_t = A x_t`` and one two-layer network per layer.

    Source: C-LoRA, arXiv 2505.17773 and its released code (hidden width 64, σ = sigmoid(g)², one core per token).

    Args:
        model: a model with token or sequence cores.
        width: hidden units of the network.
        scale: ``"sigmoid_squared"`` or ``"softplus"``; None for a point, see :class:`Amortised`.

    >>> import torch
    >>> from transformers import BertConfig, BertModel
    >>> from bayes_adapters import Batch, Bernoulli, predict
    >>> from bayes_adapters.models import StochasticCore
    >>> tiny = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    >>> model = StochasticCore(BertModel(tiny), Bernoulli(), rank=2)
    >>> batch = Batch({"input_ids": torch.tensor([[3, 5, 7], [2, 4, 6]])})
    >>> predict(model, Contextual(model), batch, num_samples=4, return_samples=True).samples.shape
    torch.Size([4, 2])
    """

    name: ClassVar[str] = "contextual"

    def __init__(
        self,
        model: AdapterModel,
        *,
        width: int = 64,
        scale: ScaleTransform | str | None = ScaleTransform.SIGMOID_SQUARED,
    ) -> None:
        super().__init__(model, context=Context.NONE, width=width, scale=scale)

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "scale": None if self.scale is None else self.scale.value}
