"""What linear heads with a Gaussian posterior share: their two scales, and a bias that is one more column of W."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bayes_adapters.heads._checks import require_positive


def read_scales(prior_scale: float, init_scale: float, **others: float) -> list[float]:
    """Return s₀ of the prior, the start's part of it, and what else must be positive, as floats.

    Raises:
        ConfigError: one of them is not positive and finite.
    """
    given = {"prior_scale": prior_scale, "init_scale": init_scale, **others}
    require_positive(**given)
    return [float(value) for value in given.values()]


def augmented(features: Float[Tensor, "rows d"]) -> Float[Tensor, "rows d+1"]:
    """Return φ = [features ; √d]: the last column of W, times √d, is the bias, and has the prior of the others."""
    return torch.cat([features, features.new_full((len(features), 1), math.sqrt(features.shape[1]))], 1)


def augmented_start(width: int, outputs: int) -> Float[Tensor, "K _"]:
    """Return where W starts: as the weight and bias of a linear layer, drawn by torch's generator."""
    linear = nn.Linear(width, outputs)
    return torch.cat([linear.weight, linear.bias[:, None] / math.sqrt(width)], 1).detach()
