"""How large the noise of training-free Bayesianization may be: a search over one number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from bayes_adapters.errors import ConfigError


class Criterion(StrEnum):
    """What must stay within the tolerance."""

    NLL = "nll"
    """The mean negative log of the averaged predictive, in nats."""
    ACCURACY = "accuracy"
    """The share of anchors whose most probable class is their label."""


class Labels(StrEnum):
    """What the anchors' labels are."""

    MODEL = "model"
    """The trained model's own most probable classes: no ground truth is needed."""
    TARGETS = "targets"
    """The targets of the batches."""


DEFAULT_TOLERANCE = {Criterion.NLL: 0.003, Criterion.ACCURACY: 0.01}
"""Greatest relative change of a criterion, as the paper takes it."""


@dataclass(frozen=True)
class SearchPoint:
    """One σ_q that was tried.

    Args:
        scale: σ_q.
        value: the criterion there: nats, or a share.
        change: ``|value − baseline| / baseline``.
        feasible: whether that is within the tolerance.
    """

    scale: float
    value: float
    change: float
    feasible: bool


@dataclass(frozen=True)
class SearchLog:
    """What the search for σ_q did.

    Args:
        scale: the σ_q chosen, the largest feasible one that was tried.
        boundary: the smallest infeasible σ_q tried; None where every one was feasible.
        baseline: the criterion at σ_q = 0.
        points: everything tried, in order.
        criterion, labels, tolerance, num_anchors, num_samples, seed: the settings.
        null_directions: layer path → how many of its r directions have d = 0, for layers that have any.
    """

    scale: float
    boundary: float | None
    baseline: float
    points: tuple[SearchPoint, ...]
    criterion: str
    labels: str
    tolerance: float
    num_anchors: int
    num_samples: int
    seed: int
    null_directions: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON, for ``save(..., task=…)`` or a report."""
        return asdict(self) | {"points": [asdict(point) for point in self.points]}


class Search:
    """Find the largest feasible σ_q; everything tried is kept in ``points``.

    Args:
        value: σ_q → the criterion; None → without noise.
        criterion: what ``value`` returns.
        tolerance: greatest relative change.

    Raises:
        ConfigError: the criterion without noise is 0 or not finite.
    """

    def __init__(self, value: Callable[[float | None], float], criterion: Criterion, tolerance: float) -> None:
        self.value, self.tolerance = value, tolerance
        self.baseline = value(None)
        self.points: list[SearchPoint] = []
        if not 0.0 < self.baseline < math.inf:
            remedy = "criterion='accuracy'" if criterion is Criterion.NLL else "criterion='nll'"
            raise ConfigError(
                f"Without noise the anchors' {criterion.value} is {self.baseline:g}, and no change is relative to "
                f"that. Is the model certain of every anchor, or wrong on all? Take labels='targets', {remedy} or "
                "other anchors."
            )

    def feasible(self, scale: float) -> bool:
        """Try one σ_q; a value that is not finite is infeasible."""
        value = self.value(scale)
        change = abs(value - self.baseline) / self.baseline
        self.points.append(SearchPoint(scale, value, change, change <= self.tolerance))
        return self.points[-1].feasible

    def run(self, low: float, high: float, iterations: int, widen: int) -> tuple[float, float | None]:
        """Return the largest feasible σ_q and the infeasible one above it.

        Args:
            low: smallest σ_q of the first interval.
            high: its largest.
            iterations: bisections of log σ_q.
            widen: how often the interval may move by its ratio; it moves up where all of it is feasible, else down.

        Raises:
            ConfigError: no σ_q tried is feasible.

        Warns:
            UserWarning: every one is; the second number is then None.
        """
        ratio = high / low
        if self.feasible(high):
            for _ in range(widen):
                low, high = high, high * ratio
                if not self.feasible(high):
                    break
            else:
                worst = max(point.change for point in self.points)
                warnings.warn(
                    f"Every σ_q tried, up to {high:g}, changes the anchors' loss by at most {worst:.2g} of it "
                    f"(tolerance {self.tolerance:g}), so the largest is taken. Pass a larger high= or widen=, a "
                    "smaller tolerance=, or more anchors.",
                    stacklevel=3,
                )
                return high, None
        elif not self.feasible(low):
            for _ in range(widen):
                low, high = low / ratio, low
                if self.feasible(low):
                    break
            else:
                raise ConfigError(
                    f"No σ_q tried is feasible: even {low:g} changes the anchors' loss by {self.points[-1].change:.2g} "
                    f"of {self.baseline:.3g}, the tolerance being {self.tolerance:g}. Pass a smaller low=, a larger "
                    "tolerance= or widen=. Of a model that is certain of its own labels the loss is close to 0; "
                    "labels='targets' or criterion='accuracy' is then the better measure."
                )
        for _ in range(iterations):
            middle = math.sqrt(low * high)
            if self.feasible(middle):
                low = middle
            else:
                high = middle
        return low, high
