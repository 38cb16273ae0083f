"""``Matching``: which rows of a batch belong together, by the similarities of their embeddings."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Matching(TorchDistribution):
    """Of B pairs, the probability that each side picks a right partner among the B of the other side.

    With similarities s, shape (B, B), and the numbers g of the groups that rows belong to, row b has the factor::

        log p_b = ½ log Σ_{k: g_k = g_b} softmax_k(s_bk)  +  ½ log Σ_{k: g_k = g_b} softmax_k(s_kb)

    Rows of one group are each other's right partners. Without groups of several rows the sums have one term, and
    ``−(1/B) Σ_b log p_b`` is the symmetric cross-entropy of CLIP. Each half is a proper probability given the B
    candidates: over the groups of a batch it sums to 1. Their geometric mean is a composite likelihood, and no density
    of anything that could be drawn: draws are the numbers 0 … B−1 of B different groups.

    Args:
        first: u, shape (*batch, B, d), the embeddings of the pairs' first sides.
        second: v, the same shape, of their second sides.
        scale: the factor of ``s_bk = scale · u_b · v_k``, shape ().

    >>> fn = Matching(torch.eye(2), torch.eye(2), torch.tensor(2.0))
    >>> fn.probs[0]
    tensor([0.8808, 0.1192])
    >>> fn.log_prob(torch.tensor([7, 9])).exp()  # both directions agree
    tensor([0.8808, 0.8808])
    >>> fn.log_prob(torch.tensor([7, 7])).exp()  # one group: any choice is right
    tensor([1., 1.])
    """

    arg_constraints = {"first": constraints.independent(constraints.real, 1)}
    support = constraints.integer_interval(-(2**63), 2**63 - 1)

    def __init__(
        self,
        first: Float[Tensor, "*batch B d"],
        second: Float[Tensor, "*batch B d"],
        scale: Float[Tensor, ""],
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.first, self.second, self.scale = first, second, scale
        super().__init__(first.shape[:-1], validate_args=validate_args)

    @cached_property
    def scores(self) -> Float[Tensor, "*batch B B"]:
        """s: the first sides' rows by the second sides'."""
        return self.scale * (self.first @ self.second.mT)

    @property
    def probs(self) -> Float[Tensor, "*batch B B"]:
        """Probability of each row of the second side, for each row of the first."""
        return self.scores.softmax(-1)

    @property
    def mean(self) -> Float[Tensor, "*batch B B"]:
        """``probs``: the expectation of the partner as a one-hot vector."""
        return self.probs

    def expand(self, batch_shape: Any, _instance: Any = None) -> Matching:
        """Return the same probabilities with another batch shape."""
        first, second = (side.expand(*batch_shape, side.shape[-1]) for side in (self.first, self.second))
        return Matching(first, second, self.scale, validate_args=False)

    def log_prob(self, value: Int[Tensor, "... B"]) -> Float[Tensor, "... B"]:
        """Return each row's log factor for the groups ``value``; which numbers they have does not matter."""
        wrong: Bool[Tensor, "... B B"] = value[..., :, None] != value[..., None, :]
        right = [self.scores.log_softmax(dim).masked_fill(wrong, -math.inf).logsumexp(dim) for dim in (-1, -2)]
        return 0.5 * (right[0] + right[1])

    def sample(self, sample_shape: Any = None) -> Int[Tensor, "... B"]:
        """Return the numbers 0 … B−1 of B different groups."""
        numbers = torch.arange(self.batch_shape[-1], device=self.first.device)
        return numbers.expand(*torch.Size(sample_shape or ()), *self.batch_shape)
