"""Densities whose log gamma functions cancel: at ν or r of 1e5, float32 leaves an error of .1 nats."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from bayes_adapters.devices import float64


class _StudentT(dist.StudentT):  # type: ignore[misc]
    """Student-t whose moments are computed without a look at ν: torch indexes by masks, for which the host waits."""

    @property
    def mean(self) -> Tensor:
        """m, or NaN where ν ≤ 1."""
        return torch.where(self.df > 1, self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        """s² ν / (ν − 2); infinite where ν ≤ 2, NaN where ν ≤ 1."""
        finite = self.scale.pow(2) * self.df / (self.df - 2)
        return torch.where(self.df > 2, finite, torch.where(self.df > 1, math.inf, math.nan))


class WideStudentT(_StudentT):
    """Student-t whose log density and entropy are computed in float64 and returned in the parameters' dtype."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``log p(value)``, shape = batch shape."""
        return self.wide().log_prob(float64(value)).to(self.loc)

    def entropy(self) -> Tensor:
        """Return the entropy, nats, shape = batch shape, in float64."""
        return self.wide().entropy()

    def wide(self) -> Any:
        """Return the same distribution in float64."""
        return _StudentT(float64(self.df), float64(self.loc), float64(self.scale), validate_args=False)


class WideNegativeBinomial(dist.NegativeBinomial):  # type: ignore[misc]
    """Negative binomial whose log density is computed in float64 and returned in the parameters' dtype."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Return ``log p(value)``, shape = batch shape."""
        r, logits, count = float64(self.total_count), float64(self.logits), float64(value)
        combinations = torch.lgamma(count + r) - torch.lgamma(r) - torch.lgamma(count + 1)
        scores = combinations + r * logsigmoid(-logits) + count * logsigmoid(logits)
        return scores.to(self.logits)
