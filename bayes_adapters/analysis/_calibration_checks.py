"""What calibration after training refuses, and its arguments as it computes with them: float64, on the CPU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.distributions import IGNORED
from bayes_adapters.errors import ConfigError, DataError, described
from bayes_adapters.likelihoods import Prediction

FEWEST = 10
"""Fewest examples for one fitted number."""
_CERTAIN = 2.0**-25  # a float32 P(y = 1) cannot say how much less than this is left of 1
_TINY = torch.finfo(torch.float32).tiny


def require_single(prediction: Prediction | Tensor, use: str) -> None:
    """Raise :class:`ConfigError` for what is no prediction, or one of several tasks."""
    if not isinstance(prediction, Prediction | Tensor):
        raise ConfigError(f"{use} takes a Prediction or a tensor; got {described(prediction)}.")
    if isinstance(prediction, Prediction) and prediction.tasks:
        raise ConfigError(
            f"{use} takes the prediction of one task; this one has {', '.join(prediction.tasks)}. Take "
            f"prediction[{next(iter(prediction.tasks))!r}], and one calibration per task."
        )


def require_classes(prediction: Prediction | Tensor, use: str) -> None:
    """Raise :class:`ConfigError` unless this predicts classes."""
    require_single(prediction, use)
    if isinstance(prediction, Prediction) and prediction.variance is not None:
        raise ConfigError(
            f"{use} is for probabilities of classes; this prediction has a variance, so its targets are numbers. Take "
            "DeviationScaling or ConformalIntervals."
        )


def require_rows(prediction: Prediction, use: str) -> None:
    """Raise :class:`DataError` where ``mean`` holds no probabilities, of one class or of rows that sum to 1 or 0."""
    sums = prediction.mean.detach().sum(-1)
    rows = prediction.mean.dim() == prediction.total.dim() + 1
    if not is_binary(prediction) and not (rows and bool(((sums - 1).abs() <= 0.02).logical_or(sums == 0).all())):
        raise DataError(
            f"{use} needs probabilities and an uncertainty for each of their rows; got {tuple(prediction.mean.shape)} "
            f"and {tuple(prediction.total.shape)}. Apply it before summed()."
        )


def require_numbers(prediction: Prediction | Tensor, use: str) -> None:
    """Raise :class:`ConfigError` unless this predicts numbers, with their variance."""
    require_single(prediction, use)
    if not isinstance(prediction, Prediction) or prediction.variance is None:
        raise ConfigError(
            f"{use} needs a Prediction with a variance, that of a likelihood of numbers such as Gaussian; this one "
            "has none. For probabilities of classes take TemperatureScaling, VectorScaling or ConformalClasses."
        )


def moments(prediction: Prediction, use: str) -> tuple[Tensor, Tensor]:
    """Return mean and variance of predicted numbers, float64, on the CPU.

    Raises:
        ConfigError: no variance.
        DataError: a mean that is not finite, or a variance that is not a positive number.
    """
    require_numbers(prediction, use)
    given = torch.stack([prediction.mean, prediction.mean if prediction.variance is None else prediction.variance])
    mean, variance = given.detach().cpu().double()
    bad = ~(mean.isfinite() & variance.isfinite() & (variance > 0))
    if bool(bad.any()):
        rows = bad.reshape(len(bad), -1).any(1).nonzero().flatten()[:5].tolist()
        raise DataError(
            f"{use} needs finite means and positive variances; those of rows {rows} are not. Did training diverge?"
        )
    return mean, variance


def known_numbers(mean: Tensor, targets: Tensor, use: str, fewest: int = FEWEST) -> Tensor:
    """Return targets of predicted numbers, float64, on the CPU; NaN where one of several is not known."""
    require_tensor(targets, use)
    y = targets.detach().cpu().double()
    if y.shape != mean.shape:
        raise DataError(f"{use} needs a target per predicted number, {tuple(mean.shape)}; got {tuple(y.shape)}.")
    rows = y.reshape(len(y), -1)
    bad = rows.isinf().any(1) | rows.isnan().all(1)
    if bool(bad.any()):
        raise DataError(f"{use}: the targets of rows {bad.nonzero().flatten()[:5].tolist()} are NaN or infinite.")
    require_count(int((~y.isnan()).sum()), fewest, use)
    return y


def require_tensor(targets: Any, use: str) -> None:
    """Raise :class:`DataError` unless the targets are one tensor."""
    if not isinstance(targets, Tensor):
        fix = " Take those of one task: targets[name]." if isinstance(targets, Mapping) else ""
        raise DataError(f"{use} takes targets as one tensor; got {described(targets)}.{fix}")


def require_count(count: int, fewest: int, use: str) -> None:
    """Raise :class:`DataError` for too few labelled examples."""
    if count < fewest:
        raise DataError(
            f"{use} needs at least {fewest} labelled examples; got {count}. Hold out more of the data for validation."
        )


def is_binary(prediction: Prediction | Tensor) -> bool:
    """Whether every entry is a P(y = 1): one per uncertainty, and a tensor of shape (N,)."""
    if isinstance(prediction, Tensor):
        return prediction.dim() == 1
    return prediction.mean.shape == prediction.total.shape


def padding(probs: Tensor, binary: bool, dims: int) -> Tensor:
    """Return where probabilities stand for padding: rows of zeros, and pixels of a mask whose P(y = 1) is exactly 0.

    Args:
        probs: of a prediction, or of its draws.
        binary: whether every entry is a P(y = 1).
        dims: of the prediction's mean: only masks have three where entries are binary.

    Returns:
        A bool tensor of the shape of ``probs`` without its classes. A sigmoid is 0 in float32 only below a logit of
        −103, so that hardly any real pixel is taken for padding, and none where it would matter that it is 0.
    """
    if not binary:
        return probs.sum(-1) == 0
    return (probs == 0) & (dims > 2)


def both_classes(probs: Tensor) -> Tensor:
    """Return P(y = 1) of any shape as rows (1 − p, p), kept from 0 by what a float32 cannot say."""
    p = probs.clamp(_CERTAIN, 1 - _CERTAIN)
    return torch.stack([1 - p, p], -1)


def log_rows(probs: Tensor) -> Tensor:
    """Return the logarithm of class probabilities; one below the smallest float32 counts as that."""
    return probs.clamp(min=_TINY).log()


def class_rows(
    prediction: Prediction | Tensor, targets: Tensor, use: str
) -> tuple[Float[Tensor, "N C"], Float[Tensor, "N C"]]:
    """Return log-probabilities and targets as rows that sum to 1, of labelled examples (or tokens, or labels) only.

    Raises:
        ConfigError: numbers are predicted, or several tasks.
        DataError: shapes that do not fit, probabilities or targets out of range.
    """
    require_classes(prediction, use)
    require_tensor(targets, use)
    given = prediction if isinstance(prediction, Tensor) else prediction.mean
    probs, y, binary = given.detach().cpu().double(), targets.detach().cpu(), is_binary(prediction)
    shape = probs.shape if binary else probs.shape[:-1]
    if not given.is_floating_point() or y.shape != shape or (not binary and probs.shape[-1] < 2):
        fix = "One-hot rows become class numbers by argmax(-1)." if y.shape == probs.shape else ""
        raise DataError(
            f"{use} needs probabilities (B,), (B, C) or (B, T, C) with targets (B,), (B,) or (B, T); got "
            f"{tuple(given.shape)} {given.dtype} with {tuple(targets.shape)}. "
            f"{fix or 'Is the dimension of draws still there? Average over it.'}"
        )
    _require_range(probs, use)
    if binary:
        unlabelled = (y == IGNORED) & (not y.is_floating_point() and y.dim() > 1)  # pixels of masks
        unlabelled |= padding(probs, binary, y.dim())
        return _binary_rows(probs, y.double().masked_fill(unlabelled, math.nan), use)
    sums = probs.sum(-1)
    if bool((((sums - 1).abs() > 0.02) & ((sums != 0) | (y.dim() == 1))).any()):
        raise DataError(
            f"{use} needs rows of probabilities that sum to 1 (tokens of padding: to 0); one sums to "
            f"{sums.flatten()[(sums - 1).abs().argmax()]:.3g}. Independent labels are scored one by one, each as (B,)."
        )
    known = (sums > 0) & ((y != IGNORED) | (y.dim() == 1))
    return _class_rows(probs[known], y[known].double(), use)


def _require_range(probs: Tensor, use: str) -> None:
    if not bool(((probs >= -1e-6) & (probs <= 1 + 1e-6)).all()):
        raise DataError(
            f"{use} needs probabilities from 0 to 1; {int(probs.isnan().sum())} of {probs.numel()} are NaN, the others "
            f"go from {probs.nan_to_num(math.inf).min():.3g} to {probs.nan_to_num(-math.inf).max():.3g}. Logits need "
            "sigmoid or softmax first."
        )


def _binary_rows(probs: Tensor, y: Tensor, use: str) -> tuple[Tensor, Tensor]:
    known = ~y.isnan() | (y.dim() == 1)
    if not bool(((y >= 0) & (y <= 1))[known].all()):
        raise DataError(
            f"{use} of P(y = 1) needs targets from 0 to 1; got {torch.unique(y[known])[:8].tolist()}. Are they coded "
            "-1/1 or 1/2?"
        )
    y = y[known]
    return log_rows(both_classes(probs[known])), torch.stack([1 - y, y], -1)


def _class_rows(probs: Tensor, y: Tensor, use: str) -> tuple[Tensor, Tensor]:
    classes = probs.shape[-1]
    if not bool(((y == y.floor()) & (y >= 0) & (y < classes)).all()):
        raise DataError(
            f"{use} needs class numbers 0 to {classes - 1} as targets; got {torch.unique(y)[:8].tolist()}. Are they "
            "counted from 1, or of other examples?"
        )
    return log_rows(probs), torch.nn.functional.one_hot(y.long(), classes).double()


def require_some_of_each(y: Float[Tensor, "N C"], every: bool, use: str) -> None:
    """Raise :class:`DataError` where the targets are of one class only, or, with ``every``, lack one."""
    present = y.sum(0) > 0
    if every and not bool(present.all()):
        raise DataError(
            f"{use} fits numbers for each of the {len(present)} classes, and no target is of class "
            f"{(~present).nonzero().flatten()[:8].tolist()}. Hold out examples of every class, or take "
            "TemperatureScaling."
        )
    if int(present.sum()) < 2:
        raise DataError(
            f"{use} needs targets of at least two classes; all {len(y)} are of class {int(present.long().argmax())}. "
            "Were the examples sorted by class before they were split?"
        )


def require_optimum(logs: Float[Tensor, "N C"], y: Float[Tensor, "N C"], use: str) -> None:
    """Raise :class:`DataError` where no temperature between 0 and ∞ is best."""
    said = (y * logs).sum(-1)
    if not bool((logs.amax(-1) - said).mean() > 0):
        raise DataError(
            f"{use} has no best value: all {len(y)} answers are right, so the smaller T the better. Fit it on examples "
            "that were not trained on, and on more of them."
        )
    if not bool((said - logs.mean(-1)).mean() > 0):
        raise DataError(
            f"{use} has no best value: the probabilities are worse than equal ones on these {len(y)} examples. Are "
            "targets and predictions in the same order, and are these the right classes?"
        )


def no_optimum(use: str, count: int) -> DataError:
    """Build the error for a fit whose numbers grow without end, or of which several sets are as good."""
    return DataError(
        f"{use} has no single best set of numbers on these {count} examples: some class is told apart without an "
        "error, or its probability is the same everywhere. Hold out more examples, or take TemperatureScaling."
    )


def require_vectors(weight: Any, bias: Any) -> None:
    """Raise :class:`ConfigError` unless weight and bias are equally many finite numbers, at least two."""
    numbers = all(isinstance(v, int | float) and math.isfinite(v) for v in (*weight, *bias))
    if len(weight) != len(bias) or len(weight) < 2 or not numbers:
        raise ConfigError(
            f"weight and bias must be one finite number per class, at least two each; got {weight!r} and {bias!r}."
        )


def require_width(classes: int, fitted: int, use: str) -> None:
    """Raise :class:`DataError` for a prediction of another number of classes."""
    if classes != fitted:
        raise DataError(f"{use} was fitted to {fitted} classes; this prediction has {classes}.")
