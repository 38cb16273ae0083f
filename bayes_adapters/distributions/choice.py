"""``ListChoice``: which of the rows of a list is the right one, by their scores."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from bayes_adapters.distributions.token_labels import IGNORED


class ListChoice(TorchDistribution):
    """The probability that the right row of each list is chosen, by a softmax over the scores f of the list's rows.

    A value has two columns: the number q of the row's list, and whether the row is right (1), wrong (0) or whether that
    is not known (−100). With n_q rows in list q, each of them has an equal share of the list's log probability::

        log p_b = (1/n_q) log Σ_{k in q, right} softmax_{k in q}(f_k),   q the list of row b

    so that the rows of a list sum to one choice. A list of which nothing is known contributes nothing. A draw is one
    list of all rows, of which one is right.

    Args:
        scores: f, shape (*batch, B).

    >>> fn = ListChoice(torch.tensor([2.0, 0.0, 5.0, 5.0]))
    >>> fn.log_prob(torch.tensor([[0, 1], [0, 0], [1, 1], [1, 0]])).reshape(2, 2).sum(1).exp()
    tensor([0.8808, 0.5000])
    """

    arg_constraints = {"scores": constraints.real}
    support = constraints.independent(constraints.integer_interval(-(2**63), 2**63 - 1), 1)

    def __init__(self, scores: Float[Tensor, "*batch B"], *, validate_args: bool | None = None) -> None:
        self.scores = scores
        super().__init__(scores.shape, torch.Size([2]), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ListChoice:
        """Return the same scores with another batch shape."""
        return ListChoice(self.scores.expand(torch.Size(batch_shape)), validate_args=False)

    def log_probs_in(self, together: Bool[Tensor, "... B B"]) -> Float[Tensor, "*batch B"]:
        """Return each row's log probability in its list; ``together`` says which rows are in one."""
        beside = self.scores[..., None, :].masked_fill(~together, -math.inf)
        return self.scores - beside.logsumexp(-1)

    def log_prob(self, value: Tensor) -> Float[Tensor, "*batch B"]:
        """Return each row's share of the log probability of its list's choice."""
        together, right = same_list(value), value[..., 1] == 1
        chosen = self.log_probs_in(together)[..., None, :].masked_fill(~(together & right[..., None, :]), -math.inf)
        known = (together & (value[..., 1] != IGNORED)[..., None, :]).any(-1)
        chosen = chosen.masked_fill(~known[..., None], 0.0)  # before the sum, whose gradient is NaN where nothing is
        return torch.where(known, chosen.logsumexp(-1), 0.0) / together.sum(-1)

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Draw one list of all rows, of which one is right; int64, shape (…, B, 2)."""
        drawn = torch.distributions.Categorical(logits=self.scores).sample(torch.Size(sample_shape or ()))
        right = torch.nn.functional.one_hot(drawn, self.scores.shape[-1])
        return torch.stack([torch.zeros_like(right), right], -1)


def same_list(value: Tensor) -> Bool[Tensor, "... B B"]:
    """Return which rows of a value of :class:`ListChoice` are in one list."""
    return value[..., :, None, 0] == value[..., None, :, 0]
