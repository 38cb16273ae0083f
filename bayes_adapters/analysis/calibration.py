"""Calibration after training: what a prediction says is scaled until it fits held-out targets.

Fit on validation examples that neither training nor the choice of a method has seen, and apply to any later
:class:`bayes_adapters.Prediction` of the same model::

    scaling = TemperatureScaling.fit(predict(model, guide, validation), validation_targets)
    answer = scaling(predict(model, guide, batch))

Source: Guo et al. 2017, arXiv 1706.04599 (temperature and vector scaling).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.analysis._calibration_checks import (
    FEWEST,
    class_rows,
    known_numbers,
    log_rows,
    moments,
    no_optimum,
    require_count,
    require_numbers,
    require_optimum,
    require_some_of_each,
    require_vectors,
    require_width,
)
from bayes_adapters.analysis._class_scaling import fitted, rescaled, without_constant
from bayes_adapters.errors import positive_number
from bayes_adapters.likelihoods import Prediction


@dataclass(frozen=True)
class TemperatureScaling:
    """``p_T(y) = p̄(y)^(1/T) / Σ_c p̄(c)^(1/T)``: the averaged log-probabilities, divided by T, through a softmax.

    Of P(y = 1) that is ``sigmoid(logit(p̄) / T)``. T > 1 makes answers less certain; none changes the order of classes.

    What is fitted is T of the **averaged** predictive p̄, and a mean is scaled by it with or without draws. Called, it
    returns the prediction with

    * ``mean`` p_T, and ``total`` its entropy H[p_T];
    * ``samples``, where there are any, each draw scaled alike, ``softmax(log p_s / T)``;
    * ``epistemic = total · I / H``, and ``aleatoric`` the rest: H is the entropy of the average of the scaled draws, I
      their mutual information (H minus the mean of their entropies). The average of scaled draws is not quite p_T, so
      only the share is taken from them; at T = 1 it is exact. Without ``samples`` I / H is the unscaled share, that of
      the given prediction: an approximation;
    * ``log_density`` None: it was that of the given probabilities.

    Args:
        temperature: T > 0.

    >>> says = torch.tensor([0.9, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.1])  # 90 % sure, right in 7 of 10
    >>> truth = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    >>> round(TemperatureScaling.fit(says, truth).temperature, 3)  # log 9 / log (7/3)
    2.593
    """

    name: ClassVar[str] = "temperature"
    temperature: float

    def __post_init__(self) -> None:
        positive_number("temperature", self.temperature)

    @classmethod
    def fit(cls, prediction: Prediction | Tensor, targets: Tensor) -> TemperatureScaling:
        """Return the T that minimises the mean of ``−log p_T(y)``: a convex problem in 1/T, solved to rounding.

        Args:
            prediction: of held-out examples; or its probabilities: P(y = 1) (B,), classes (B, C) or of tokens
                (B, T, C), zero at padding, as pixels of a mask are. Of several labels per example (a Prediction of
                :class:`MultiLabel`) one T.
            targets: as the likelihood has them: 0 to 1, (B,); class numbers, (B,); of tokens (B, T), −100 where one has
                no label; of several labels (B, K), NaN where one is not known.

        Raises:
            ConfigError: numbers are predicted, or several tasks.
            DataError: fewer than 10 labelled examples, targets of one class only, shapes or ranges that do not fit,
                NaN; or no T is best, because every answer is right or they are worse than equal probabilities.
        """
        use = "TemperatureScaling"
        logs, y = class_rows(prediction, targets, use)
        require_count(len(y), FEWEST, use)
        require_some_of_each(y, False, use)
        require_optimum(logs, y, use)
        classes = logs.shape[1]
        one = torch.cat([torch.ones(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)])
        found = fitted(logs, y, one[:, None])
        if found is None:
            raise no_optimum(use, len(y))
        return cls(float(1 / found[0]))

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the scaled prediction.

        Raises:
            ConfigError: numbers are predicted, or several tasks.
            DataError: the mean holds no probabilities, or uncertainties were summed.
        """
        return rescaled(prediction, "TemperatureScaling", self.rows)

    def rows(self, probs: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return class probabilities, scaled, float64."""
        return (log_rows(probs) / self.temperature).softmax(-1)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return {"temperature": self.temperature}


@dataclass(frozen=True)
class VectorScaling:
    """``p_wb(y) ∝ p̄(y)^(w_y) exp(b_y)``: a weight and a bias per class on the averaged log-probabilities.

    K + K numbers. A constant added to every bias has no effect, so the biases sum to 0. P(y = 1) counts as two classes,
    0 and 1, which is beta calibration (Kull et al. 2017). What is fitted, and what becomes of the uncertainty and of
    draws, is as in :class:`TemperatureScaling`, with this formula; classes may change their order.

    Args:
        weight: w, one number per class.
        bias: b, one number per class.

    >>> scaling = VectorScaling([1.0, 1.0], [0.0, 1.0])
    >>> answer = Prediction(torch.tensor([[0.5, 0.5]]), *torch.full((3, 1), 0.0), num_samples=1)
    >>> scaling(answer).probs  # sigmoid(1) of class 1
    tensor([[0.2689, 0.7311]])
    """

    name: ClassVar[str] = "vector"
    weight: Sequence[float]
    bias: Sequence[float]

    def __post_init__(self) -> None:
        require_vectors(self.weight, self.bias)

    @classmethod
    def fit(cls, prediction: Prediction | Tensor, targets: Tensor) -> VectorScaling:
        """Return the numbers that minimise the mean of ``−log p_wb(y)``: a convex problem, solved to rounding.

        Args:
            prediction: of held-out examples, or its probabilities; see :meth:`TemperatureScaling.fit`.
            targets: see there.

        Raises:
            ConfigError: numbers are predicted, or several tasks.
            DataError: fewer than 10 labelled examples per class, a class without any, shapes or ranges that do not
                fit, NaN; or no set of numbers is best, because a class is told apart without an error.
        """
        use = "VectorScaling"
        logs, y = class_rows(prediction, targets, use)
        classes = logs.shape[1]
        require_count(len(y), FEWEST * classes, use)
        require_some_of_each(y, True, use)
        free = torch.zeros(2 * classes, 2 * classes - 1, dtype=torch.float64)
        free[:classes, :classes] = torch.eye(classes, dtype=torch.float64)
        free[classes:, classes:] = without_constant(classes)
        found = fitted(logs, y, free)
        if found is None:
            raise no_optimum(use, len(y))
        weight, bias = (free @ found).split(classes)
        return cls(weight.tolist(), bias.tolist())

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the scaled prediction.

        Raises:
            ConfigError: numbers are predicted, or several tasks.
            DataError: another number of classes, no probabilities, or uncertainties were summed.
        """
        return rescaled(prediction, "VectorScaling", self.rows)

    def rows(self, probs: Float[Tensor, "*B C"]) -> Float[Tensor, "*B C"]:
        """Return class probabilities, scaled, float64."""
        require_width(probs.shape[-1], len(self.weight), "VectorScaling")
        weight, bias = (probs.new_tensor(list(v)) for v in (self.weight, self.bias))
        return (weight * log_rows(probs) + bias).softmax(-1)

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return {"weight": list(self.weight), "bias": list(self.bias)}


@dataclass(frozen=True)
class DeviationScaling:
    """``v' = s² v``: the standard deviation of predicted real numbers times s, their mean as it is.

    Noise and spread of the draws' means are scaled alike: ``samples`` become ``μ + s (μ_s − μ)``; total and aleatoric
    grow by log s nats, while epistemic, a ratio of variances, stays. ``log_density`` becomes None.

    Args:
        scale: s > 0.

    >>> zero = torch.zeros(10)
    >>> answer = Prediction(zero, zero, zero, zero, num_samples=1, variance=torch.ones(10))
    >>> DeviationScaling.fit(answer, torch.tensor([2.0, -2.0] * 5)).scale
    2.0
    """

    name: ClassVar[str] = "deviation"
    scale: float

    def __post_init__(self) -> None:
        positive_number("scale", self.scale)

    @classmethod
    def fit(cls, prediction: Prediction, targets: Tensor) -> DeviationScaling:
        """Return ``s = √ mean((y − μ)² / v)``, the most likely s where y ~ N(μ, s² v).

        Args:
            prediction: of held-out examples, with ``mean`` and ``variance`` (B,) or (B, K).
            targets: the same shape; NaN where one of several numbers is not known.

        Raises:
            ConfigError: the prediction has no variance, or is one of several tasks.
            DataError: fewer than 10 known targets, shapes that do not fit, numbers that are not finite, or every mean
                equals its target.
        """
        use = "DeviationScaling"
        mean, variance = moments(prediction, use)
        y = known_numbers(mean, targets, use)
        square = ((y - mean).square() / variance).nanmean()
        if not bool(square > 0):
            raise no_optimum(use, len(y))
        return cls(float(square.sqrt()))

    def __call__(self, prediction: Prediction) -> Prediction:
        """Return the scaled prediction.

        Raises:
            ConfigError: the prediction has no variance, or is one of several tasks.
            DataError: a mean is not finite, or a variance not positive.
        """
        require_numbers(prediction, "DeviationScaling")
        named = ("variance", "aleatoric_variance", "epistemic_variance")
        variances = {name: getattr(prediction, name) for name in named}
        scaled: dict[str, Any] = {
            name: None if value is None else self.scale**2 * value for name, value in variances.items()
        }
        wider = math.log(self.scale)
        drawn = prediction.samples
        return replace(
            prediction,
            total=prediction.total + wider,
            aleatoric=prediction.aleatoric + wider,
            **scaled,
            samples=None if drawn is None else prediction.mean + self.scale * (drawn - prediction.mean),
            log_density=None,
        )

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments, as JSON."""
        return {"scale": self.scale}
