"""Which answers to trust: a threshold of the uncertainty at a stated risk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from bayes_adapters.analysis._checks import checked_scores
from bayes_adapters.analysis._conformal_checks import (
    checked,
    require_enough,
    require_limit,
    require_losses,
    require_part,
    require_share,
)
from bayes_adapters.likelihoods.prediction import PARTS, Prediction


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


@dataclass(frozen=True)
class RiskThreshold:
    """The uncertainty up to which a classifier's answers are trusted, so that few of all answers are trusted and wrong.

    ``P(uncertainty ≤ t and the most probable class is wrong) ≤ risk``, by :func:`selective`, for answers exchangeable
    with those of :meth:`fit`. It is saved with an adapter, after the scalings whose predictions it was fitted to.

    Args:
        threshold: t, nats; None where nothing can be trusted at this risk.
        risk: between 0 and 1.
        part: of the uncertainty, ``total``, ``aleatoric`` or ``epistemic``.

    >>> p, u = torch.full((20,), 0.8), torch.arange(20.0)
    >>> answer = Prediction(p, u, u, 0 * u, num_samples=1)
    >>> limit = RiskThreshold.fit(answer, (torch.arange(20) < 15).float(), risk=0.1)  # wrong from the 15th on
    >>> limit.threshold, int(limit(answer).sum())
    (15.0, 16)
    """

    name: ClassVar[str] = "risk_threshold"
    threshold: float | None
    risk: float
    part: str = "total"

    def __post_init__(self) -> None:
        require_share("risk", self.risk)
        require_part(self.part, PARTS)
        require_limit(self.threshold)

    @classmethod
    def fit(cls, prediction: Prediction, targets: Tensor, *, risk: float = 0.1, part: str = "total") -> RiskThreshold:
        """Return the threshold of these calibration examples.

        Args:
            prediction: of n examples, one class each.
            targets: class numbers (n,); of P(y = 1) 0 and 1.
            risk: the share of all answers that may be trusted and wrong.
            part: of the uncertainty.

        Raises:
            ConfigError: an option out of range; numbers, several tasks, tokens or several labels are predicted.
            DataError: fewer than 1/risk − 1 examples, or what are no probabilities and class numbers.
        """
        require_part(part, PARTS)
        probs, y = checked(prediction, targets, "RiskThreshold")
        found = selective(getattr(prediction, part), probs.argmax(-1) != y, risk=risk)
        return cls(None if found.threshold == -math.inf else found.threshold, risk, part)

    def __call__(self, prediction: Prediction) -> Bool[Tensor, " B"]:
        """Return which answers are trusted."""
        uncertainty: Tensor = getattr(prediction, self.part)
        return torch.zeros_like(uncertainty) > 0 if self.threshold is None else uncertainty <= self.threshold

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return asdict(self)
