"""A head of two linear layers, with a ReLU between them or nothing."""

from __future__ import annotations

from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.errors import whole_number
from bayes_adapters.heads.head import Head
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.likelihoods import Likelihood


class TwoLayerHead(Head):
    """``f = W₂ σ(W₁ pool(h) + b₁) + b₂``, σ being the ReLU or, where the papers have none, the identity.

    Args:
        hidden: units of the hidden layer.
        relu: whether σ is the ReLU.
        pooling: see :class:`Pooling`; None is the mean, or none at all where the likelihood has one target per token.

    >>> import torch
    >>> from bayes_adapters.likelihoods import Categorical
    >>> head = TwoLayerHead(8)
    >>> head.prepare(4, Categorical(3))
    >>> head(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    name: ClassVar[str] = "two_layer"

    def __init__(self, hidden: int, relu: bool = True, pooling: Pooling | str | None = None) -> None:
        super().__init__(pooling)
        whole_number("hidden", hidden)
        self.hidden, self.relu = hidden, relu

    def build(self, width: int, likelihood: Likelihood) -> None:
        layers = [nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, likelihood.num_outputs)]
        # Their places in the list are the parameters' names, in saved adapters too.
        for place, layer in enumerate(layers if self.relu else layers[::2]):
            self.add_module(str(place), layer)

    def forward(self, features: Float[Tensor, "rows *T d"]) -> Float[Tensor, "rows *T K"]:
        features = features.to(next(self.parameters()).dtype)
        for layer in self.children():
            features = layer(features)
        return features

    def config(self) -> dict[str, Any]:
        return super().config() | {"hidden": self.hidden, "relu": self.relu}
