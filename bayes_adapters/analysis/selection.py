"""Which answers to trust: a threshold of the uncertainty at a stated risk."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from bayes_adapters.analysis._checks import checked_scores
from bayes_adapters.analysis._conformal_checks import require_enough, require_losses, require_share


class Selection(NamedTuple):
    """Trust an answer whose uncertainty is at most ``threshold``.

    Args:
        threshold: in units of the uncertainty; −∞ where nothing can be trusted.
        coverage: share of the calibration examples that are trusted.
        error: mean error of those; NaN where there is none. Nothing is promised about it.
    """

    threshold: float
    coverage: float
    error: float


def selective(uncertainty: Tensor, error: Tensor, *, risk: float) -> Selection:
    """Return the largest threshold t under which answers are trusted and wrong with at most probability ``risk``.

    What is controlled is ``E[error · 1(uncertainty ≤ t)] ≤ risk``, over all answers, those that are not trusted with
    loss 0. This loss grows with t, so conformal risk control applies: t is the largest uncertainty of a calibration
    example (the smallest retained, in the source's order) with ``(n R̂(t) + 1) / (n + 1) ≤ risk``, where
    ``R̂(t) = (1/n) Σ error_i 1(uncertainty_i ≤ t)``. The error rate **among** the trusted answers is this risk over
    their share; it does not grow steadily with t, and nothing is promised about it.

    Args:
        uncertainty: of n calibration examples, (n,), any real scale, larger is less certain: ``prediction.total``, say.
        error: bool, or a loss from 0 to 1, (n,).
        risk: between 0 and 1.

    Raises:
        ConfigError: risk out of range.
        DataError: fewer than 1/risk − 1 examples, shapes that do not fit, NaN, or a loss out of range.

    Source: Angelopoulos et al. 2022, arXiv 2208.02814.

    >>> selective(torch.arange(20.0), torch.arange(20) > 14, risk=0.1)  # one error and the added one, of 21
    Selection(threshold=15.0, coverage=0.8, error=0.0625)
    """
    require_share("risk", risk)
    u, e = checked_scores(uncertainty, error, "uncertainty", "error")
    require_losses(e)
    require_enough(len(u), "risk", risk)
    levels, where = torch.unique(u, return_inverse=True)  # ties are trusted together
    summed = torch.bincount(where, e, minlength=len(levels)).cumsum(0)
    fits = int((summed + 1 <= risk * (len(u) + 1) + 1e-9).sum())
    if not fits:
        return Selection(-math.inf, 0.0, math.nan)
    threshold = float(levels[fits - 1])
    trusted = u <= threshold
    return Selection(threshold, float(trusted.double().mean()), float(e[trusted].mean()))
