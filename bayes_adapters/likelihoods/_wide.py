"""Densities whose log gamma functions cancel: at ν or r of 1e5, float32 leaves an error of .1 nats."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bayes_adapters.devices import float64


class WideStudentT(dist.StudentT):  # type: ignore[misc]
    """Student-t whose log density and entropy are computed in float64 and returned in the parameters' dtype."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``log p(value)``, shape = batch shape."""
        return self.wide().log_prob(float64(value)).to(self.loc)

    def entropy(self) -> Tensor:
        """Return the entropy, nats, shape = batch shape, in float64."""
        return self.wide().entropy()

    def wide(self) -> Any:
        """Return the same distribution in float64."""
        return dist.StudentT(float64(self.df), float64(self.loc), float64(self.scale))


class WideNegativeBinomial(dist.NegativeBinomial):  # type: ignore[misc]
    """Negative binomial whose log density is computed in float64 and returned in the parameters' dtype."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``log p(value)``, shape = batch shape."""
        r, logits, count = float64(self.total_count), float64(self.logits), float64(value)
        combinations = torch.lgamma(count + r) - torch.lgamma(r) - torch.lgamma(count + 1)
        scores = combinations + r * logsigmoid(-logits) + count * logsigmoid(logits)
        return scores.to(self.logits)
