"""What conformal prediction refuses."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bayes_adapters.analysis._calibration_checks import require_classes, require_tensor
from bayes_adapters.analysis._checks import checked_classes
from bayes_adapters.errors import ConfigError, DataError, unknown_name
from bayes_adapters.likelihoods import Prediction


def require_share(name: str, value: Any) -> None:
    """Raise :class:`ConfigError` unless ``value`` lies between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise ConfigError(f"{name} must lie between 0 and 1, such as 0.1; got {value!r}.")


def require_part(part: str, allowed: tuple[str, ...]) -> None:
    """Raise :class:`ConfigError` unless the part of the uncertainty exists."""
    if part not in allowed:
        raise unknown_name("part", part, allowed)


def require_limit(threshold: Any) -> None:
    """Raise :class:`ConfigError` unless this is a finite number, or None."""
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool) and math.isfinite(threshold)
    if threshold is not None and not number:
        raise ConfigError(f"threshold must be a finite number, or None to trust nothing; got {threshold!r}.")


def require_threshold(threshold: Any, least: float = -math.inf) -> None:
    """Raise :class:`ConfigError` unless this is a number of at least ``least``."""
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    if not number or not threshold >= least:
        at_least = "" if least == -math.inf else f" of at least {least:g}"
        raise ConfigError(f"threshold must be a number{at_least}; got {threshold!r}.")


def fewest(share: float) -> int:
    """Return the smallest n with ``⌈(n + 1)(1 − share)⌉ ≤ n``.

    >>> fewest(0.1), fewest(0.05)
    (9, 19)
    """
    return math.ceil(round((1 - share) / share, 9))


def require_enough(count: int, name: str, share: float) -> None:
    """Raise :class:`DataError` where no threshold can promise this share."""
    if count < fewest(share):
        raise DataError(
            f"{name}={share:g} needs at least {fewest(share)} calibration examples; got {count}. With fewer, only the "
            f"set of everything keeps the promise. Hold out more examples, or take a larger {name}."
        )


def class_probs(prediction: Prediction | Tensor, use: str) -> Float[Tensor, "N C"]:
    """Return class probabilities, float64, on the CPU.

    Raises:
        ConfigError: numbers are predicted, several tasks, tokens, or several labels.
        DataError: they are no probabilities.
    """
    return checked(prediction, None, use)[0]


def checked(
    prediction: Prediction | Tensor, targets: Tensor | None, use: str
) -> tuple[Float[Tensor, "N C"], Int[Tensor, " N"]]:
    """Return class probabilities, float64, and class numbers (zeros for None), on the CPU."""
    require_classes(prediction, use)
    probs = prediction if isinstance(prediction, Tensor) else prediction.mean
    labels = isinstance(prediction, Prediction) and probs.dim() > 1 and probs.shape == prediction.total.shape
    if probs.dim() > 2 or labels:
        raise ConfigError(
            f"{use} promises a share of examples that are exchangeable, one class each; this prediction has shape "
            f"{tuple(probs.shape)}. The tokens of a text are not exchangeable with those of another: take one of each. "
            "Several labels are taken one by one, each as (B,)."
        )
    y = torch.zeros(len(probs), device="cpu") if targets is None else targets
    require_tensor(y, use)
    return checked_classes(probs, y)


def require_score(score: str, allowed: tuple[str, ...], penalty: float, free: int) -> None:
    """Raise :class:`ConfigError` unless the score exists, and the penalty of RAPS is one."""
    if score not in allowed:
        raise unknown_name("score", score, allowed)
    if not 0 <= penalty < math.inf or isinstance(free, bool) or not isinstance(free, int) or free < 0:
        raise ConfigError(
            f"penalty must be a number and free a number of classes, neither negative; got {penalty!r} and {free!r}."
        )


def require_width(classes: int, fitted: int) -> None:
    """Raise :class:`DataError` for a prediction of another number of classes."""
    if classes != fitted:
        raise DataError(f"The threshold was fitted to {fitted} classes; this prediction has {classes}.")


def quantile_pairs(quantiles: Tensor) -> Float[Tensor, "N two"]:
    """Return lower and upper quantiles, float64, on the CPU.

    Raises:
        DataError: another shape than (N, 2), numbers that are not finite, or a lower one above its upper one.
    """
    q = quantiles.detach().cpu().double()
    if q.dim() != 2 or q.shape[1] != 2 or not bool(q.isfinite().all()) or not bool((q[:, 0] <= q[:, 1]).all()):
        raise DataError(
            f"quantiles must be finite, of shape (N, 2), the lower one first; got {tuple(quantiles.shape)}. Crossed "
            "quantiles are put in order by quantiles.sort(-1).values."
        )
    return q


def require_losses(error: Tensor) -> None:
    """Raise :class:`DataError` unless every loss lies between 0 and 1."""
    if not bool(((error >= 0) & (error <= 1)).all()):
        raise DataError(
            f"error must be bool, or a loss from 0 to 1; got {error.min():.3g} to {error.max():.3g}. Divide a bounded "
            "loss by its largest value."
        )
