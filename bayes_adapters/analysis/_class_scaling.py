"""What temperature and vector scaling share: the convex fit, and a prediction made of scaled rows of probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.analysis._calibration_checks import both_classes, is_binary, padding, require_classes, require_rows
from bayes_adapters.analysis._newton import minimise
from bayes_adapters.devices import float64
from bayes_adapters.likelihoods import Prediction
from bayes_adapters.likelihoods._splits import above_rounding, class_prediction, class_sums, entropy


def rescaled(prediction: Prediction, use: str, rows: Callable[[Tensor], Tensor]) -> Prediction:
    """Return the prediction with every row of class probabilities through ``rows``; padding stays zero."""
    require_classes(prediction, use)
    require_rows(prediction, use)
    binary = is_binary(prediction)

    def changed(probs: Tensor) -> Tensor:
        wide = float64(probs)
        found = rows(both_classes(wide) if binary else wide)
        return found.masked_fill(padding(wide, binary, prediction.mean.dim())[..., None], 0.0)

    mean = changed(prediction.mean)
    drawn, known = None, prediction
    if prediction.samples is not None:
        drawn = changed(prediction.samples)
        known = class_prediction(class_sums(drawn), len(drawn))
    total = entropy(mean)
    before = float64(known.total)
    share = float64(known.epistemic) / before.masked_fill(before == 0, 1.0)
    epistemic = above_rounding(total * share)
    return replace(
        prediction,
        mean=_as_given(mean, binary, prediction.mean),
        total=total.to(prediction.total),
        aleatoric=(total - epistemic).to(prediction.total),
        epistemic=epistemic.to(prediction.total),
        samples=None if drawn is None else _as_given(drawn, binary, prediction.samples),
        log_density=None,
        local=None,  # given no draws of local latents nobody knows what becomes of their part
    )


def _as_given(rows: Tensor, binary: bool, given: Tensor | None) -> Tensor:
    found = rows[..., 1] if binary else rows
    return found if given is None else found.to(given)


def fitted(logs: Tensor, y: Tensor, free: Tensor) -> Tensor | None:
    """Return θ where the mean of ``−log softmax(w z + b)[y]`` is smallest, with (w, b) = ``free`` θ; None without one.

    Args:
        logs: z, shape (N, C), float64.
        y: targets as rows that sum to 1, shape (N, C).
        free: shape (2C, P).
    """
    count, classes = logs.shape
    of_weight, of_bias = free.split(classes)

    def evaluate(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = (free @ theta).split(classes)
        log_p = (weight * logs + bias).log_softmax(-1)
        p = log_p.exp()
        wrong, tilted = p - y, p * logs
        gradient = torch.cat([(wrong * logs).mean(0), wrong.mean(0)])
        # The covariance of ∂(w z + b)/∂θ under p, in θ's own size: a vocabulary's square is not held in memory.
        squared, first, mass = ((tilted * logs).mean(0), tilted.mean(0), p.mean(0))  # E[p z²], E[p z], E[p]
        crossed = of_weight.T @ (first[:, None] * of_bias)
        second = of_weight.T @ (squared[:, None] * of_weight) + crossed + crossed.T
        second = second + of_bias.T @ (mass[:, None] * of_bias)
        means = tilted @ of_weight + p @ of_bias
        return -(y * log_p).sum(-1).mean(), free.T @ gradient, second - means.T @ means / count

    # From equal probabilities: where they are nearly 0 and 1 the curvature is lost, and a step leads anywhere.
    return minimise(evaluate, torch.zeros_like(free[0]))


def without_constant(classes: int) -> Float[Tensor, "C free"]:
    """Return an orthonormal basis of the biases whose sum is 0."""
    constant = torch.full((classes, classes), 1 / classes, dtype=torch.float64)
    return torch.linalg.eigh(torch.eye(classes, dtype=torch.float64) - constant)[1][:, 1:]
