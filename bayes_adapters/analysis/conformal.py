"""Split conformal prediction: sets of answers that hold the true one in a stated share of cases, whatever the model.

The promise needs calibration examples that are exchangeable with those to come (same source, used for nothing else),
and is about the average over them: not about every class, nor about every input. Scores s_1 … s_n of the calibration
examples give the threshold ``q = s_(k)``, the k-th smallest, ``k = ⌈(n + 1)(1 − α)⌉``; a set holds every answer whose
score is at most q, and ``1 − α ≤ P(y in set)``, which is at most ``1 − α + 1/(n + 1)`` where scores do not tie.

Source: Vovk, Gammerman and Shafer 2005; Angelopoulos and Bates 2021, arXiv 2107.07511.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayes_adapters.analysis._calibration_checks import known_numbers, moments
from bayes_adapters.analysis._conformal_checks import (
    checked,
    class_probs,
    quantile_pairs,
    require_enough,
    require_score,
    require_share,
    require_threshold,
    require_width,
)
from bayes_adapters.analysis.selection import Selection as Selection
from bayes_adapters.analysis.selection import selective as selective
from bayes_adapters.errors import true_or_false, whole_number
from bayes_adapters.likelihoods import Prediction

_SCORES = ("thr", "aps", "raps")


@dataclass(frozen=True)
class ConformalClasses:
    """Sets of classes that hold the true one with probability at least 1 − α.

    Scores of class y, with the classes in order of falling probability, y at rank r (1 is the most probable; of equal
    ones the lower number comes first), and u = 1, or uniform on [0, 1) if ``randomised``::

        thr   1 − p_y                                                   the smallest sets on average
        aps   Σ_{classes before y} p + u p_y                            sizes that follow the difficulty
        raps  Σ_{classes before y} p + u p_y + penalty · max(0, r − free)     … without the long tail

    Randomised sets are smaller and cover 1 − α exactly, and the same input has another set with another seed. A set may
    be empty. Adding the most probable class to each set can only cover more.

    Args:
        threshold: q.
        alpha: the share α of sets that may miss.
        classes: C; two for P(y = 1).
        score: ``thr``, ``aps`` or ``raps``.
        penalty, free: of ``raps``.
        randomised: whether u is random, for ``aps`` and ``raps``.

    Source: Sadinle, Lei and Wasserman 2019 (THR); Romano, Sesia and Candès 2020, arXiv 2006.02544 (APS); Angelopoulos
    et al. 2021, arXiv 2009.14193 (RAPS).

    >>> probs = torch.tensor([[0.7, 0.2, 0.1]]).expand(20, 3)
    >>> found = ConformalClasses.fit(probs, torch.tensor([0] * 17 + [1] * 3), alpha=0.1)
    >>> found.sets(torch.tensor([[0.85, 0.1, 0.05], [0.4, 0.35, 0.25]]))
    tensor([[ True, False, False],
            [ True,  True,  True]])
    """

    name: ClassVar[str] = "conformal_classes"
    threshold: float
    alpha: float
    classes: int
    score: str = "thr"
    penalty: float = 0.01
    free: int = 1
    randomised: bool = False

    def __post_init__(self) -> None:
        require_threshold(self.threshold)
        require_share("alpha", self.alpha)
        whole_number("classes", self.classes, least=2)
        require_score(self.score, _SCORES, self.penalty, self.free)
        true_or_false("randomised", self.randomised)

    @classmethod
    def fit(
        cls,
        prediction: Prediction | Tensor,
        targets: Tensor,
        *,
        alpha: float = 0.1,
        score: str = "thr",
        penalty: float = 0.01,
        free: int = 1,
        randomised: bool = False,
        seed: int = 0,
    ) -> ConformalClasses:
        """Return the threshold of these calibration examples.

        Args:
            prediction: of n examples, or its probabilities: P(y = 1) (n,) or classes (n, C).
            targets: class numbers (n,); of P(y = 1) 0 and 1.
            alpha: α.
            score: ``thr``, ``aps`` or ``raps``.
            penalty: what a class of rank above ``free`` costs, per rank.
            free: number of classes without a penalty.
            randomised: whether u is random.
            seed: of u.

        Raises:
            ConfigError: an option out of range; numbers, several tasks, tokens or several labels are predicted.
            DataError: fewer than 1/α − 1 examples, or what are no probabilities and class numbers.
        """
        require_share("alpha", alpha)
        p, y = checked(prediction, targets, "ConformalClasses")
        blank = cls(math.inf, alpha, p.shape[1], score, penalty, free, randomised)
        scores = blank._scores(p, 2 * seed).gather(1, y[:, None])[:, 0]
        return cls(_quantile(scores, alpha), alpha, p.shape[1], score, penalty, free, randomised)

    def sets(self, prediction: Prediction | Tensor, *, seed: int = 0) -> Bool[Tensor, "B C"]:
        """Return for every example which classes its set holds, (B, C), bool, on the CPU; column 1 is y = 1.

        Args:
            prediction: of B examples, or its probabilities.
            seed: of u, where sets are randomised; an example's u depends on its place among the B.

        Raises:
            ConfigError: numbers, several tasks, tokens or several labels are predicted.
            DataError: no probabilities, or another number of classes.
        """
        p = class_probs(prediction, "ConformalClasses")
        require_width(p.shape[1], self.classes)
        return self._scores(p, 2 * seed + 1) <= self.threshold

    def _scores(self, p: Float[Tensor, "N C"], seed: int) -> Float[Tensor, "N C"]:
        """Return the score of every class; fitting and predicting take different seeds."""
        if self.score == "thr":
            return 1 - p
        ranked, order = torch.sort(p, dim=-1, descending=True, stable=True)
        u = 1.0 if not self.randomised else _uniform(len(p), seed)
        scores = ranked.cumsum(-1) - ranked + u * ranked
        if self.score == "raps":
            rank = torch.arange(1, p.shape[1] + 1, dtype=p.dtype, device="cpu")
            scores = scores + self.penalty * (rank - self.free).clamp(min=0)
        return torch.empty_like(p).scatter_(-1, order, scores)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ConformalIntervals:
    """Intervals ``μ ± q σ`` that hold a real number with probability at least 1 − α; the score is ``|y − μ| / σ``.

    σ is the standard deviation of the prediction, so intervals are wide where the model says that it is unsure. Of
    several numbers per example, such as the four of a box, the score is ``max_k |y_k − μ_k| / σ_k`` over those that are
    known, and the promise is about all of them **together**. For each by itself take one column at a time.

    Args:
        threshold: q.
        alpha: the share α of intervals that may miss.

    Source: Papadopoulos et al. 2002; Lei et al. 2018, arXiv 1604.04173, section 5.2.

    >>> zero = torch.zeros(9)
    >>> answer = Prediction(zero, zero, zero, zero, num_samples=1, variance=torch.full((9,), 4.0))
    >>> found = ConformalIntervals.fit(answer, torch.arange(9.0), alpha=0.1)
    >>> found.sets(answer)[0]  # the largest of nine residuals
    tensor([-8.,  8.])
    """

    name: ClassVar[str] = "conformal_intervals"
    threshold: float
    alpha: float

    def __post_init__(self) -> None:
        require_threshold(self.threshold, least=0.0)
        require_share("alpha", self.alpha)

    @classmethod
    def fit(cls, prediction: Prediction, targets: Tensor, *, alpha: float = 0.1) -> ConformalIntervals:
        """Return the threshold of these calibration examples.

        Args:
            prediction: of n examples, with a variance, (n,) or (n, K).
            targets: the same shape; NaN where one of several numbers is not known.
            alpha: α.

        Raises:
            ConfigError: alpha out of range, no variance, or several tasks.
            DataError: fewer than 1/α − 1 examples, or numbers that are not finite.
        """
        require_share("alpha", alpha)
        mean, variance = moments(prediction, "ConformalIntervals")
        y = known_numbers(mean, targets, "ConformalIntervals", fewest=1)
        scores = ((y - mean).abs() / variance.sqrt()).nan_to_num(nan=-math.inf).reshape(len(y), -1).amax(1)
        return cls(_quantile(scores, alpha), alpha)

    def sets(self, prediction: Prediction) -> Float[Tensor, "B *K two"]:
        """Return lower and upper ends, (B, 2) or (B, K, 2), in units of the target, on the prediction's device.

        Raises:
            ConfigError: no variance, or several tasks.
            DataError: numbers that are not finite.
        """
        mean, variance = moments(prediction, "ConformalIntervals")
        half = self.threshold * variance.sqrt()
        return torch.stack([mean - half, mean + half], -1).to(prediction.mean)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class ConformalQuantiles:
    """CQR: predicted quantiles, widened (or narrowed) by q on both sides, hold a real number with at least 1 − α.

    The score is ``max(lower − y, y − upper)``, and the interval ``[lower − q, upper + q]``. It is empty, its lower end
    above its upper one, where q is negative and the quantiles are nearer than 2 |q|.

    Args:
        threshold: q, in units of the target.
        alpha: the share α of intervals that may miss.

    Source: Romano, Patterson and Candès 2019, arXiv 1905.03222.

    >>> quantiles = torch.tensor([[0.0, 1.0]]).expand(9, 2)
    >>> ConformalQuantiles.fit(quantiles, torch.linspace(0, 3, 9), alpha=0.1).sets(quantiles)[0]
    tensor([-2.,  3.])
    """

    name: ClassVar[str] = "conformal_quantiles"
    threshold: float
    alpha: float

    def __post_init__(self) -> None:
        require_threshold(self.threshold)
        require_share("alpha", self.alpha)

    @classmethod
    def fit(cls, quantiles: Float[Tensor, "n two"], targets: Tensor, *, alpha: float = 0.1) -> ConformalQuantiles:
        """Return the threshold of these calibration examples.

        Args:
            quantiles: lower and upper one, shape (n, 2); those at α/2 and 1 − α/2 are the usual ones.
            targets: shape (n,).
            alpha: α.

        Raises:
            ConfigError: alpha out of range.
            DataError: fewer than 1/α − 1 examples, or numbers that do not fit or are not finite.
        """
        require_share("alpha", alpha)
        q = quantile_pairs(quantiles)
        y = known_numbers(q[:, 0], targets, "ConformalQuantiles", fewest=1)
        return cls(_quantile(torch.maximum(q[:, 0] - y, y - q[:, 1]), alpha), alpha)

    def sets(self, quantiles: Float[Tensor, "B two"]) -> Float[Tensor, "B two"]:
        """Return lower and upper ends, (B, 2), in units of the target, on the quantiles' device.

        Raises:
            DataError: quantiles that are no finite pairs in order.
        """
        q = quantile_pairs(quantiles)
        return torch.stack([q[:, 0] - self.threshold, q[:, 1] + self.threshold], -1).to(quantiles)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return asdict(self)


def _quantile(scores: Float[Tensor, " n"], alpha: float) -> float:
    """Return the ``⌈(n + 1)(1 − α)⌉``-th smallest score."""
    require_enough(len(scores), "alpha", alpha)
    k = math.ceil(round((len(scores) + 1) * (1 - alpha), 9))
    return float(scores.kthvalue(k).values)


def _uniform(count: int, seed: int) -> Float[Tensor, "N 1"]:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, generator=rng, dtype=torch.float64, device="cpu")
