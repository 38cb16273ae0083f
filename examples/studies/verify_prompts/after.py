"""What is fitted on the validation pairs after training: how far to widen, a temperature, the density of the frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Prediction, predict
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.reliability import FrameDensity

ABSENT = 1e3
"""Nats: how unlike those of training a recording is that is not there."""
SCALES = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Standard deviations of the fallback that :func:`widening` tries."""
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


def widening(
    model: AdapterModel, guide: Any, validation: Iterable[Batch], seed: int, samples: int
) -> tuple[AdapterModel, AdapterGuide]:
    """Give the guide's reliability the scale of :data:`SCALES` under which the validation pairs have the least NLL.

    Their recordings are corrupted as those of training are; no corruption that training lacks has a say.
    """
    batches = list(validation)

    def nll(scale: float) -> float:
        guide.reliability.scale = scale
        found = predict(model, guide, batches, num_samples=samples, seed=seed).log_density
        assert found is not None  # validation pairs have labels
        return -float(found.mean())

    guide.reliability.scale = min(SCALES, key=nll)
    return model, guide


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


def risk_limit(uncertainty: Tensor, wrong: Tensor, rate: float) -> float:
    """Return the largest u such that at most ``rate`` of the answers of uncertainty ≤ u are wrong; 0 where none is.

    Args:
        uncertainty: shape (N,), ≥ 0.
        wrong: shape (N,), bool.
        rate: of errors, 0 to 1.
    """
    limits = uncertainty.unique()
    kept = uncertainty <= limits[:, None]
    allowed = (kept & wrong).sum(-1).double() / kept.sum(-1) <= rate
    return float(limits[allowed].max()) if bool(allowed.any()) else 0.0
