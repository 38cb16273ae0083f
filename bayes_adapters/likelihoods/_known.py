"""Several independent entries per example, of which some are not known."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor


class KnownEntries(TorchDistribution):
    """K independent entries; those that are NaN in the data are summed over, not scored.

    Density: ``log p(y) = Σ_k [y_k is known] log p_k(y_k)``.

    Args:
        base_dist: the entries, batch shape (*batch, K), with 0 in their support.

    >>> import pyro.distributions as dist
    >>> fn = KnownEntries(dist.Bernoulli(logits=torch.zeros(1, 3)))
    >>> fn.log_prob(torch.tensor([[1.0, float("nan"), 0.0]])).exp()
    tensor([0.2500])
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(self, base_dist: Any, *, validate_args: bool | None = None) -> None:
        self.base_dist = base_dist
        shape = base_dist.batch_shape
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Each entry's mean, shape (*batch, K)."""
        return self.base_dist.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> KnownEntries:
        """Return the same entries with another batch shape."""
        return KnownEntries(self.base_dist.expand(torch.Size(batch_shape) + self.event_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log density of the known entries, shape = batch shape."""
        known = ~value.isnan()
        # A number stands in for what is unknown: the gradient of a NaN would be NaN, whatever it is multiplied by.
        scores = self.base_dist.log_prob(torch.where(known, value, 0.0))
        return torch.where(known, scores, 0.0).sum(-1)

    def sample(self, sample_shape: Any = None) -> Tensor:
        """Draw every entry."""
        return self.base_dist.sample(torch.Size(sample_shape or ()))
