"""What Gaussians with the precision of a prior plus a curvature share: λ, and being set."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayes_adapters.errors import positive_number


class Curved(nn.Module):
    """A module whose buffers hold a Gaussian; ``log_precision`` among them is log λ, shape ()."""

    @property
    def prior_precision(self) -> float:
        """λ."""
        return math.exp(float(self.get_buffer("log_precision")))

    def rescale(self, prior_precision: float) -> None:
        """Set λ.

        Raises:
            ConfigError: it is not positive and finite.
        """
        positive_number("prior_precision", prior_precision)
        self.get_buffer("log_precision").fill_(math.log(prior_precision))

    @torch.no_grad()
    def _hold(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.get_buffer(name).copy_(value)
