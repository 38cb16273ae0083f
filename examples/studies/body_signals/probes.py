"""Logistic regression on pooled features: fitted to convergence, its L2 weight chosen on validation people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bayes_adapters import Frames
from bayes_adapters.errors import ConfigError, DataError

L2 = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Tried weights of ``|w|²/2`` per training example."""


@dataclass(frozen=True)
class Probe:
    """``P(stress) = sigmoid(((x - mean) / scale) w + b)``.

    Args:
        mean, scale, weight: shape (d,), float64.
        bias: shape ().
        l2: the chosen weight of ``|w|²/2``.
    """

    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    weight: Float[Tensor, " d"]
    bias: Float[Tensor, ""]
    l2: float

    def standardised(self, features: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
        """Features in units of the training windows' standard deviation, float64."""
        return (features.double() - self.mean) / self.scale

    def probs(self, features: Float[Tensor, "N d"]) -> Float[Tensor, " N"]:
        """P(stress), shape (N,), float64."""
        return torch.sigmoid(self.standardised(features) @ self.weight + self.bias)


def fit_probe(
    features: Float[Tensor, "N d"],
    labels: Int[Tensor, " N"],
    held_out: Float[Tensor, "M d"],
    held_out_labels: Int[Tensor, " M"],
    l2: Sequence[float] = L2,
) -> Probe:
    """Fit one probe for each ``l2`` and return that of the lowest held-out NLL (the largest l2 on a tie).

    Args:
        features: of the training windows, shape (N, d).
        labels: theirs, shape (N,), 0 or 1.
        held_out: features of the validation windows, shape (M, d).
        held_out_labels: theirs, shape (M,).
        l2: weights to try.

    Raises:
        ConfigError: no weight to try, or one that is not positive.
        DataError: only one class to train on.
    """
    if not l2 or min(l2) <= 0:
        raise ConfigError(f"l2 must list positive weights, such as {L2}; got {tuple(l2)}.")
    if len(labels.unique()) != 2:
        raise DataError(f"A probe needs windows of rest and of stress; the labels are all {labels.unique().tolist()}.")
    x = features.double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-8)
    fitted = []
    for value in sorted(l2, reverse=True):
        weight, bias = _logistic((x - mean) / scale, labels.double(), value)
        probe = Probe(mean, scale, weight, bias, value)
        fitted.append((float(F.binary_cross_entropy(probe.probs(held_out), held_out_labels.double())), probe))
    return min(fitted, key=lambda pair: pair[0])[1]


def _logistic(x: Tensor, y: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=200, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight = parameters[:-1]
        loss = F.binary_cross_entropy_with_logits(x @ weight + parameters[-1], y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    final = parameters.detach()
    return final[:-1], final[-1]


def pool(frames: Frames) -> Float[Tensor, "N k"]:
    """Mean and standard deviation over an example's real frames, shape (N, 2d); zeros for an example without any."""
    weight = frames.mask[..., None].to(frames.values.dtype)
    mean = frames.mean()
    variance = ((frames.values - mean[:, None]).square() * weight).sum(1) / weight.sum(1).clamp_min(1.0)
    return torch.cat([mean, variance.sqrt()], -1)


def hand_features(values: Float[Tensor, "N S C"]) -> Float[Tensor, "N k"]:
    """Seven numbers a channel, shape (N, 7C): mean, deviation, least, greatest, slope, step size, curvature.

    Slope is that of the least-squares line over the window, from -1/2 to 1/2 in time; step size is the mean absolute
    first difference, curvature the mean absolute second one.
    """
    time = torch.linspace(-0.5, 0.5, values.shape[1])[None, :, None]
    slope = (values * time).sum(1) / time.square().sum()
    steps = values.diff(dim=1)
    parts = (values.mean(1), values.std(1), values.amin(1), values.amax(1), slope)
    return torch.cat([*parts, steps.abs().mean(1), steps.diff(dim=1).abs().mean(1)], -1)
