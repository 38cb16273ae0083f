"""The expected log-likelihood under Gaussian outputs, ``E log p(y | f)`` with ``f_k ~ N(m_k, v_k)``, independent."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.likelihoods import Likelihood

NODES = 20
"""Nodes of the Gauss–Hermite rule, exact for polynomials of degree 39: gpytorch's number, too."""


def expected_log_density(
    likelihood: Likelihood,
    mean: Float[Tensor, "*S B K"],
    variance: Float[Tensor, "*S B K"],
    targets: Any,
    draws: int,
) -> Float[Tensor, "*S B"]:
    """Return E log p(y | f), nats, for every row.

    Where log p(y | f) is one term per output (K = 1, or a separable likelihood) by the Gauss–Hermite rule,
    ``Σ_i w_i log p(y | m + √(2v) x_i)`` with all outputs at the same node, as the sum of terms asks for each one's own
    expectation only. It is exact for Gaussian noise, whose log density is quadratic in f. Else, as for classes, by the
    average over ``draws`` draws of f for each row, from torch's generator: unbiased, reparametrised.

    Args:
        likelihood: p(y | f).
        mean: m.
        variance: v ≥ 0.
        targets: B of them.
        draws: how many.

    >>> from bayes_adapters.likelihoods import Gaussian
    >>> row = torch.zeros(1, 1)
    >>> expected_log_density(Gaussian(), row, row + 3.0, torch.zeros(1), 1) - Gaussian().distribution(row).log_prob(
    ...     torch.zeros(1)
    ... )  # −½ v / σ²
    tensor([-1.5000], grad_fn=<SubBackward0>)
    """
    if likelihood.num_outputs == 1 or likelihood.separable:
        nodes, weights = (torch.from_numpy(part).to(mean) for part in np.polynomial.hermite.hermgauss(NODES))
        noise = math.sqrt(2.0) * nodes.reshape(-1, *[1] * mean.dim())
        weights = weights / math.sqrt(math.pi)
    else:
        noise = torch.randn(draws, *mean.shape, dtype=mean.dtype, device=mean.device)
        weights = mean.new_full((draws,), 1.0 / draws)
    fn = likelihood.distribution(mean + variance.sqrt() * noise)
    log_density = fn.log_prob(likelihood.observation(fn, targets))
    # no product of matrices, which autocast would round to bfloat16
    return (weights.to(log_density.dtype).reshape(-1, *[1] * (log_density.dim() - 1)) * log_density).sum(0)
