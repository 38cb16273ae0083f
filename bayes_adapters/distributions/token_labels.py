"""``TokenLabels``: the labels of a sequence's tokens, some of which have none."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Integer
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

IGNORED = -100
"""The target of a token without a label, as Hugging Face collators have it."""


class TokenLabels(TorchDistribution):
    """One class for every real token of a sequence; given the outputs, tokens are independent.

    Density: ``log p(y) = Σ_t [token t is real, y_t ≠ −100] log softmax(f_t)[y_t]``. A token whose label is −100
    (:data:`IGNORED`) is summed over, not scored. Draws have −100 at padding.

    Args:
        logits: f, shape (*batch, T, C).
        real: shape (*batch, T) or broadcastable to it, True where a token is real; None where all are.

    >>> labels = TokenLabels(torch.zeros(1, 3, 4), torch.tensor([[True, True, False]]))
    >>> labels.log_prob(torch.tensor([[2, -100, 1]])).exp()
    tensor([0.2500])
    """

    arg_constraints = {"logits": constraints.independent(constraints.real, 2)}
    support = constraints.independent(constraints.integer_interval(IGNORED, 2**31 - 1), 1)

    def __init__(
        self,
        logits: Float[Tensor, "*batch T C"],
        real: Bool[Tensor, "... T"] | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.logits = logits - logits.logsumexp(-1, keepdim=True)
        every = torch.ones(logits.shape[:-1], dtype=torch.bool, device=logits.device)
        self.real = every if real is None else real.expand(every.shape)
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=validate_args)

    @property
    def probs(self) -> Float[Tensor, "*batch T C"]:
        """Class probabilities of each token; zero at padding."""
        return self.logits.exp() * self.real[..., None]

    @property
    def mean(self) -> Float[Tensor, "*batch T C"]:
        """``probs``: the expectation of the labels as one-hot vectors."""
        return self.probs

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenLabels:
        """Return the same labels with another batch shape."""
        shape = torch.Size(batch_shape)
        logits = self.logits.expand(shape + self.logits.shape[-2:])
        return TokenLabels(logits, self.real.expand(logits.shape[:-1]), validate_args=False)

    def count(self, value: Integer[Tensor, "... T"]) -> Float[Tensor, "..."]:
        """Return how many tokens are scored, shape (…), as floating point."""
        return (self.real & (value.long() != IGNORED)).sum(-1).to(self.logits)

    def log_prob(self, value: Integer[Tensor, "... T"]) -> Float[Tensor, "..."]:
        """Return the log density of the labels ``value``, shape = batch shape; what padding holds does not matter."""
        value = value.long()  # of uint8, -100 would be 156
        scored = self.real & (value != IGNORED)
        index = torch.where(scored, value, 0)[..., None]
        logits = self.logits.expand(*index.shape[:-1], -1)
        return torch.where(scored, logits.gather(-1, index)[..., 0], 0.0).sum(-1)

    def sample(self, sample_shape: Any = None) -> Int[Tensor, "... T"]:
        """Draw labels, −100 at padding."""
        drawn = torch.distributions.Categorical(logits=self.logits).sample(torch.Size(sample_shape or ()))
        return torch.where(self.real, drawn, IGNORED)
