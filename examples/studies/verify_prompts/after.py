"""What is done with a trained method's predictions: a temperature, or the density of the frames in their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bayes_adapters import Batch, Prediction
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.reliability import FrameDensity

ABSENT = 1e3
"""Nats: how unlike those of training a recording is that is not there."""
Judge = Callable[[Prediction, Sequence[Batch]], Prediction]
"""What is done with a prediction: (prediction, its batches) → the one that counts."""


@dataclass(frozen=True)
class Validated:
    """What a judge is made from.

    Args:
        prediction: of the validation pairs, of as many draws and the same seed as at test, with its ``samples``.
        labels: theirs, 0. or 1., shape (N,).
        density: makes the density of the training frames.
    """

    prediction: Prediction
    labels: Tensor
    density: Callable[[], FrameDensity]


def temperature(validated: Validated) -> Judge:
    """Return what scales answers by the one temperature that fits the validation pairs best."""
    scaling = TemperatureScaling.fit(validated.prediction, validated.labels)
    return lambda prediction, _: scaling(prediction)


def density_alone(validated: Validated) -> Judge:
    """Return what takes a method's answers and says the distance of the frames, nats, in the place of its uncertainty.

    Total and epistemic are that distance and aleatoric is 0: the answers' own probability counts for nothing.
    """
    density = validated.density()

    def judge(prediction: Prediction, batches: Sequence[Batch]) -> Prediction:
        distance = torch.cat([_distance(density, batch) for batch in batches])
        return replace(prediction, total=distance, aleatoric=torch.zeros_like(distance), epistemic=distance)

    return judge


def _distance(density: FrameDensity, batch: Batch) -> Tensor:
    frames = batch.context.get("audio")
    if frames is None:
        return torch.full((batch.size,), ABSENT)
    frames = frames.to("cpu")
    return density.distance(frames).masked_fill(~frames.present, ABSENT).clamp_max(ABSENT)
