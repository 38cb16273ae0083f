"""The usual head: one linear layer on pooled hidden states."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bayes_adapters.heads.head import Head
from bayes_adapters.likelihoods import Likelihood


class LinearHead(Head):
    """``f = W pool(h) + b``, with torch's initial values of a linear layer.

    Args:
        pooling: see :class:`Pooling`; None is the mean, or none at all where the likelihood has one target per token.

    >>> import torch
    >>> from bayes_adapters.likelihoods import Categorical
    >>> head = LinearHead("last")
    >>> head.prepare(4, Categorical(3))
    >>> head(torch.zeros(2, 4)).shape, [name for name, _ in head.named_parameters()]
    (torch.Size([2, 3]), ['weight', 'bias'])
    """

    name: ClassVar[str] = "linear"
    weight: Tensor
    bias: Tensor

    def build(self, width: int, likelihood: Likelihood) -> None:
        linear = nn.Linear(width, likelihood.num_outputs)
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, features: Float[Tensor, "rows *T d"]) -> Float[Tensor, "rows *T K"]:
        return F.linear(features.to(self.weight.dtype), self.weight, self.bias)
