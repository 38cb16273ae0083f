"""How sums over S draws become a mean and the split total = aleatoric + epistemic, for classes and for real numbers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.devices import float64
from bayes_adapters.likelihoods.prediction import Prediction

HALF_LOG_TWO_PI_E = 0.5 * math.log(2 * math.pi * math.e)
"""The entropy of N(0, 1), nats."""


_AT_ONCE = 2**24
"""Numbers that are float64 at one time, 128 MB, beside what is returned: S·B·T·V of a vocabulary do not fit."""


def class_sums(probs: Float[Tensor, "S *B C"]) -> dict[str, Float[Tensor, "..."]]:
    """Sum class probabilities and their entropies over the S draws, in float64."""
    rows = probs.reshape(len(probs), -1, probs.shape[-1])
    at_once = max(1, _AT_ONCE // max(rows[:, :1].numel(), 1))
    if rows.shape[1] <= at_once:
        wide = float64(probs)
        return {"mean": wide.sum(0), "entropy": entropy(wide).sum(0)}
    mean = float64(rows[0, :0]).new_empty(rows.shape[1:])
    entropies = mean.new_empty(rows.shape[1])
    for start in range(0, rows.shape[1], at_once):
        part = float64(rows[:, start : start + at_once])
        mean[start : start + at_once] = part.sum(0)
        entropies[start : start + at_once] = entropy(part).sum(0)
    return {"mean": mean.reshape(probs.shape[1:]), "entropy": entropies.reshape(probs.shape[1:-1])}


def class_prediction(sums: dict[str, Tensor], num_samples: int) -> Prediction:
    """Average what :func:`class_sums` summed: total H[p̄], aleatoric (1/S) Σ H[p_s]; epistemic is their difference."""
    mean, aleatoric = sums["mean"] / num_samples, sums["entropy"] / num_samples
    return split(mean, entropy(mean), aleatoric, num_samples)


def moment_sums(mean: Tensor, variance: Tensor, entropies: Tensor) -> dict[str, Tensor]:
    """Sum over the S draws what :func:`moment_prediction` needs, in float64.

    Args:
        mean: shape (S, B, …): the mean μ_s of each draw's predictive.
        variance: the same shape: its variance v_s, in squared units of the target.
        entropies: the same shape, nats: its entropy h_s.
    """
    mean, variance = float64(mean), float64(variance)
    summed = {"mean": mean, "square": mean.square(), "variance": variance, "log_variance": variance.log()}
    return {name: value.sum(0) for name, value in (summed | {"entropy": float64(entropies)}).items()}


def moment_prediction(sums: dict[str, Tensor], num_samples: int) -> Prediction:
    """Average what :func:`moment_sums` summed, for real numbers of any distribution with a variance.

    ``v = (1/S) Σ v_s + Var_s[μ_s]`` (law of total variance), aleatoric = (1/S) Σ h_s and epistemic =
    ``½ log v − (1/S) Σ ½ log v_s ≥ 0``. Total is then the entropy of the draws' family stretched to the variance v,
    where that family has a location and a scale: exact for S = 1, an upper bound for Gaussians, else an approximation.
    """
    moments = mixture_moments(sums, num_samples)
    aleatoric = sums["entropy"] / num_samples
    total = aleatoric + 0.5 * (moments.variance.log() - sums["log_variance"] / num_samples)
    return split(moments.mean, total, aleatoric, num_samples, moments)


def normal_sums(loc: Tensor, scale: Tensor, spread: Tensor | None = None) -> dict[str, Tensor]:
    """Sum over S draws of N(loc, scale²), shape (S, B, …), what :func:`normal_prediction` needs, in float64.

    ``spread`` is the variance of what is not drawn but known to be Gaussian about ``loc``: each of the S stands for
    infinitely many draws, whose means have that variance.
    """
    loc, scale = float64(loc), float64(scale)
    variance, entropies = scale.square(), scale.log() + HALF_LOG_TWO_PI_E
    summed = {"mean": loc, "square": loc.square(), "variance": variance, "entropy": entropies}
    if spread is not None:
        summed["spread"] = float64(spread)
    return {name: value.sum(0) for name, value in summed.items()}


def normal_prediction(sums: dict[str, Tensor], num_samples: int) -> Prediction:
    """Average what :func:`normal_sums` summed.

    The averaged predictive is a mixture of S Gaussians without a closed-form entropy; total is the entropy
    ``½ log(2πe v)`` of the Gaussian with the mixture's variance v, an upper bound that is exact for S = 1.
    """
    moments = mixture_moments(sums, num_samples)
    total = 0.5 * (2 * math.pi * math.e * moments.variance).log()
    return split(moments.mean, total, sums["entropy"] / num_samples, num_samples, moments)


class Moments(NamedTuple):
    """Mean and variance of the mixture of S draws, and the two parts of the variance that the draws are a sample of.

    By the law of total variance ``Var[y] = E_E[Var[y | E]] + Var_E[E[y | E]]``. ``noise = (1/S) Σ v_s`` is the first
    without bias. S means scatter about their own mean by (1 − 1/S) of the second, so ``spread`` is
    ``S/(S−1) · ((1/S) Σ μ_s² − μ²)``, exactly without bias, plus what is known without draws. For S = 1 it is the known
    part alone. ``variance`` is the mixture's own, without the factor: that of the density that ``log_density`` scores.
    """

    mean: Tensor
    variance: Tensor
    noise: Tensor
    spread: Tensor


def mixture_moments(sums: dict[str, Tensor], num_samples: int) -> Moments:
    """Return the moments, from the sums of ``mean``, ``square``, ``variance`` and, where there is one, ``spread``."""
    mean = sums["mean"] / num_samples
    drawn = sums["square"] / num_samples - mean.square()
    # A deviation below the resolution of a float32 mean is rounding, in its sum of squares too.
    drawn = drawn.masked_fill(drawn <= torch.finfo(torch.float32).eps ** 2 * mean.square(), 0.0)
    known = sums["spread"] / num_samples if "spread" in sums else torch.zeros_like(drawn)
    noise = sums["variance"] / num_samples
    return Moments(mean, drawn + known + noise, noise, drawn * num_samples / max(num_samples - 1, 1) + known)


def split(
    mean: Tensor, total: Tensor, aleatoric: Tensor, num_samples: int, moments: Moments | None = None
) -> Prediction:
    """Return the prediction, in float32, whose epistemic part is total − aleatoric."""
    epistemic = above_rounding(total - aleatoric)
    parts = [t.float() for t in (mean, total, total - epistemic, epistemic)]
    names = {"variance": "variance", "noise": "aleatoric_variance", "spread": "epistemic_variance"}
    extra = {} if moments is None else {own: getattr(moments, name).float() for name, own in names.items()}
    return Prediction(parts[0], parts[1], parts[2], parts[3], num_samples, **extra)


def above_rounding(epistemic: Tensor) -> Tensor:
    """Set what lies below 1e-12 nats to 0: it is rounding, and would rank examples by noise. NaN stays NaN."""
    return epistemic.masked_fill(epistemic <= 1e-12, 0.0)


def entropy(probs: Float[Tensor, "*B C"]) -> Float[Tensor, "*B"]:
    """Return ``−Σ p log p`` in nats over the last dimension."""
    rows = probs.reshape(-1, probs.shape[-1]).split(max(1, _AT_ONCE // probs.shape[-1]))
    if len(rows) < 2:
        return torch.special.entr(probs).sum(-1)
    return torch.cat([torch.special.entr(part).sum(-1) for part in rows]).reshape(probs.shape[:-1])
