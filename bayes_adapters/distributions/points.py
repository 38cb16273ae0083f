"""``Points``: stored points, each as likely as the others."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

_NONE = torch.Size()


class Points(TorchDistribution):
    """``q(w) = (1/S) Σ_s δ(w − w_s)``: S stored points in R^D, each as likely as the others.

    Density with respect to the counting measure on them: ``log q(w_s) = −log S``. So in an ELBO, where the points are
    fixed, the "KL" is ``−log S − log p(w_s)`` at the draw, a constant of everything that is trained.

    Args:
        values: w_s, shape (S, D).
        batch_shape: of independent draws.

    >>> Points(torch.tensor([[0.0, 1.0], [2.0, 3.0]])).mean
    tensor([1., 2.])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector

    def __init__(
        self,
        values: Float[Tensor, "S D"],
        batch_shape: torch.Size = _NONE,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.values = values
        super().__init__(batch_shape, values.shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Float[Tensor, "*batch D"]:
        """The average of the points."""
        return self.values.mean(0).expand(self.shape())

    @property
    def variance(self) -> Float[Tensor, "*batch D"]:
        """The average squared distance from it, entry by entry."""
        return self.values.var(0, correction=0).expand(self.shape())

    def expand(self, batch_shape: Any, _instance: Any = None) -> Points:
        """Return the same points with another batch shape."""
        return Points(self.values, torch.Size(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return −log S for every draw; what is none of the points is not looked for."""
        return value.new_full(value.shape[:-1], -math.log(len(self.values)))

    def sample(self, sample_shape: Any = None) -> Float[Tensor, "... D"]:
        """Draw points, with replacement."""
        shape = torch.Size(sample_shape or ()) + self.batch_shape
        return self.values[torch.randint(len(self.values), shape, device=self.values.device)]

    def numbered(self, seed: int, numbers: Int[Tensor, " n"]) -> Float[Tensor, "n D"]:
        """Return the points of draws with these numbers: in an order that depends on the seed, each once in S draws."""
        count = len(self.values)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed % (1 << 63)), device="cpu")
        return self.values[order.to(numbers.device)[numbers % count].to(self.values.device)]
