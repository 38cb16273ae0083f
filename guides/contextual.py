"""``Contextual``: the core's posterior depends on this layer's own low-rank feature (C-LoRA)."""

from __future__ import annotations

from typing import Any, ClassVar

from bayes_adapters.guides._head import ScaleTransform
from bayes_adapters.guides.amortised import Amortised, Context
from bayes_adapters.inference.model import AdapterModel


class Contextual(Amortised):
    """``q(E_t | z_t) = N(E_p[E] + μ(z_t), f(g(z_t))²)`` with ``z_t = A x_t`` and one two-layer network a layer.

    Source: C-LoRA, arXiv 2505.17773 and its released code (hidden width 64, σ = sigmoid(g)², one core per token).

    Args:
        model: a model with token or sequence cores.
        width: hidden units of the network.
        scale: ``"sigmoid_squared"`` or ``"softplus"``.
    """

    name: ClassVar[str] = "contextual"

    def __init__(
        self, model: AdapterModel, *, width: int = 64, scale: ScaleTransform | str = ScaleTransform.SIGMOID_SQUARED
    ) -> None:
        super().__init__(model, context=Context.NONE, width=width, scale=scale)

    def config(self) -> dict[str, Any]:
        return {"width": self.width, "scale": self.scale.value}
