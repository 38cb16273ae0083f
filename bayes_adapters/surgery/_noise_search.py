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
    LEAST_NLL = "least_nll"
    """The same as ``nll``, but the σ_q that makes it least is taken, without a tolerance: of held-out anchors, whose
    targets the model has not learned, that is where noise helps most."""


class Relative(StrEnum):
    """What a tolerance is a part of."""

    LOSS = "loss"
    """The criterion without noise, and a change in either direction, as published. It tightens as an adapter over-fits:
    where that is certain of its anchors the loss without noise vanishes, and with it the noise that is allowed."""
    MARGINAL = "marginal"
    """The entropy of the anchors' mean prediction, or of their targets' frequencies, nats: the loss of a predictor that
    sees no input. It is a unit that no over-fitting changes. Only a loss that grows counts."""
    NATS = "nats"
    """1 nat per anchor. Only a loss that grows counts."""


class Labels(StrEnum):
    """What the anchors' labels are."""

    MODEL = "model"
    """The trained model's own most probable classes: no ground truth is needed."""
    TARGETS = "targets"
    """The targets of the batches."""


DEFAULT_TOLERANCE = {
    (Criterion.NLL, Relative.LOSS): 0.003,
    (Criterion.ACCURACY, Relative.LOSS): 0.01,
    (Criterion.NLL, Relative.MARGINAL): 0.05,
    (Criterion.NLL, Relative.NATS): 0.05,
}
"""Greatest change of a criterion; relative to the loss as the paper takes it."""


_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class SearchPoint:
    """One σ_q that was tried.

    Args:
        scale: σ_q.
        value: the criterion there: nats, or a share.
        change: ``|value − baseline| / baseline``; ``(value − baseline) / unit`` where the tolerance has a unit of its
            own, or there is none.
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
        relative_to: what the tolerance is a part of.
        unit: that in nats, or a share: the baseline, the marginal entropy, or 1. With ``criterion="least_nll"`` it is
            None, as are ``tolerance`` and ``relative_to``: the least is taken, without a tolerance.
    """

    scale: float
    boundary: float | None
    baseline: float
    points: tuple[SearchPoint, ...]
    criterion: str
    labels: str
    tolerance: float | None
    num_anchors: int
    num_samples: int
    seed: int
    null_directions: dict[str, int]
    relative_to: str | None
    unit: float | None

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON, for ``save(..., task=…)`` or a report."""
        return asdict(self) | {"points": [asdict(point) for point in self.points]}


class Search:
    """Find the largest feasible σ_q; everything tried is kept in ``points``.

    Args:
        value: σ_q → the criterion; None → without noise.
        criterion: what ``value`` returns.
        tolerance: greatest change, in parts of the unit.
        unit: what the change is a part of, if it grows; None is the criterion without noise, either way.

    Raises:
        ConfigError: the criterion without noise is not finite, or 0 where it is the unit.
    """

    def __init__(
        self,
        value: Callable[[float | None], float],
        criterion: Criterion,
        tolerance: float,
        unit: float | None = None,
    ) -> None:
        self.value, self.tolerance, self.unit = value, tolerance, unit
        self.baseline = value(None)
        self.points: list[SearchPoint] = []
        if unit is None and not 0.0 < self.baseline < math.inf:
            remedy = "criterion='accuracy'" if criterion is Criterion.NLL else "criterion='nll'"
            raise ConfigError(
                f"Without noise the anchors' {criterion.value} is {self.baseline:g}, and no change is relative to "
                f"that. Is the model certain of every anchor, or wrong on all? Take relative_to='marginal', "
                f"labels='targets', {remedy} or other anchors."
            )
        if not math.isfinite(self.baseline):
            raise ConfigError(f"Without noise the anchors' {criterion.value} is {self.baseline:g}.")

    def feasible(self, scale: float) -> bool:
        """Try one σ_q; a value that is not finite is infeasible."""
        value = self.value(scale)
        change = value - self.baseline
        change = abs(change) / self.baseline if self.unit is None else change / self.unit
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
                    f"Every σ_q tried, up to {high:g}, changes the anchors' loss by at most {worst:.2g} {self._of()} "
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
                    f"{self._of()}, the tolerance being {self.tolerance:g}. Pass a smaller low=, a larger "
                    "tolerance= or widen=. Of a model that is certain of its own labels the loss is close to 0; "
                    "relative_to='marginal', labels='targets' or criterion='least_nll' is then the better measure."
                )
        for _ in range(iterations):
            middle = math.sqrt(low * high)
            if self.feasible(middle):
                low = middle
            else:
                high = middle
        return low, high

    def least(self, low: float, high: float, iterations: int, widen: int) -> float:
        """Return the σ_q with the least criterion: the best of a geometric grid, refined by golden section in log σ_q.

        Args:
            low: smallest σ_q of the grid.
            high: the next; the grid has ``widen`` more above it, and as many below, each by the same ratio.
            iterations: of the golden section.
            widen: see there.

        Warns:
            UserWarning: no σ_q tried is better than none; the smallest is then returned.
        """
        ratio = high / low
        grid = [low * ratio**power for power in range(-widen, widen + 2)]
        scores = {scale: self._tried(scale) for scale in grid}
        best = min(grid, key=scores.__getitem__)
        if not scores[best] < self.baseline:
            warnings.warn(
                f"No σ_q tried, {grid[0]:.2g} … {grid[-1]:.2g}, makes the anchors' loss less than {self.baseline:.3g}, "
                "which it is without noise, so the smallest is taken. Are these training examples? Held-out ones say "
                "where the model is too certain.",
                stacklevel=3,
            )
            return grid[0]
        left, right = math.log(best / ratio), math.log(best * ratio)
        for _ in range(iterations):
            inner = [right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)]
            values = [scores.setdefault(math.exp(x), math.nan) for x in inner]
            values = [self._tried(math.exp(x)) if math.isnan(v) else v for x, v in zip(inner, values, strict=True)]
            scores |= {math.exp(x): v for x, v in zip(inner, values, strict=True)}
            if values[0] <= values[1]:
                right = inner[1]
            else:
                left = inner[0]
        return min(scores, key=scores.__getitem__)

    def _tried(self, scale: float) -> float:
        self.feasible(scale)
        value = self.points[-1].value
        return value if math.isfinite(value) else math.inf

    def _of(self) -> str:
        return f"of {self.baseline:.3g}" if self.unit is None else f"of {self.unit:.3g} nats"
