"""Class probabilities under Gaussian logits: by draws of them, or by a formula that needs none."""

from __future__ import annotations

import math
from enum import StrEnum

from jaxtyping import Float
from torch import Tensor


class Predictive(StrEnum):
    """How a head with logits ``f_k ~ N(m_k, v_k)`` answers; numbers need neither, their predictive is exact."""

    DRAWS = "draws"
    """``num_samples`` draws of f: unbiased, and total uncertainty splits into aleatoric and epistemic."""
    PROBIT = "probit"
    """:func:`probit`: one answer, the same in every draw; all of the head's uncertainty counts as aleatoric."""


def probit(mean: Float[Tensor, "*S K"], variance: Float[Tensor, "*S K"]) -> Float[Tensor, "*S K"]:
    """Return logits ``m / √(1 + π v / 8)`` whose probabilities are nearly ``E softmax(f)``, or E σ(f) for one logit.

    σ(f) is close to the standard normal's distribution function at f √(π/8), whose expectation is exact. The error of
    E σ(f) is below .02; softmax takes it logit by logit, and the class with the largest mean stays the largest only
    where variances are alike.

    Sources: MacKay 1992, doi 10.1162/neco.1992.4.5.720; several classes: Lu, Ie and Sha 2020, arXiv 2006.07584.

    >>> import torch
    >>> probit(torch.tensor([2.0]), torch.tensor([8 * 3 / math.pi]))
    tensor([1.])
    """
    return mean / (1.0 + math.pi / 8.0 * variance).sqrt()
