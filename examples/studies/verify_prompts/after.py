"""What is done after training: how far to widen, a temperature, the density of the frames, a Gaussian process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Prediction, predict
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.heads.gaussian_process import GaussianProcessHead
from bayes_adapters.reliability import FrameDensity
from bayes_adapters.surgery.new_head import with_head
from bayes_adapters.training import fit
from bayes_adapters.training.inducing import initialise

INDUCING, EPOCHS = 64, 20
"""Inducing points of the Gaussian process, and its passes over the training pairs."""
ABSENT = 1e3
"""Nats: how unlike those of training a recording is that is not there."""
SCALES = (0.1, 0.2, 0.35, 0.5, 0.7, 1.0)
"""Standard deviations of the fallback that :func:`widening` tries."""
Judge = Callable[[Prediction, Sequence[Batch]], Prediction]
"""What is done with a prediction: (prediction, its batches) → the one that counts."""


@dataclass(frozen=True)
class Finishing:
    """What there is after training.

    Args:
        training: the training pairs in batches, with corruptions of their own in every pass.
        num_data: how many they are.
        validation: the validation pairs.
        seed: of the run.
        samples: posterior draws at test.
    """

    training: Iterable[Batch]
    num_data: int
    validation: Sequence[Batch]
    seed: int
    samples: int


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


def widening(model: AdapterModel, guide: Any, run: Finishing) -> tuple[AdapterModel, AdapterGuide]:
    """Give the guide's reliability the scale of :data:`SCALES` under which the validation pairs have the least NLL.

    Their recordings are corrupted as those of training are; no corruption that training lacks has a say.
    """

    def nll(scale: float) -> float:
        guide.reliability.scale = scale
        found = predict(model, guide, run.validation, num_samples=run.samples, seed=run.seed).log_density
        assert found is not None  # validation pairs have labels
        return -float(found.mean())

    guide.reliability.scale = min(SCALES, key=nll)
    return model, guide


def process(model: AdapterModel, guide: AdapterGuide, run: Finishing) -> tuple[AdapterModel, AdapterGuide]:
    """Put a Gaussian process on the hidden units of a trained late fusion, in the place of its last layer.

    Kernel, inducing points and q(u) train by the ELBO, as many epochs as the network did; all below stays as it is. The
    epoch with the lowest validation NLL is kept.
    """
    layer: Any = model.head.get_submodule("0")
    head = GaussianProcessHead(min(INDUCING, run.num_data // 2), hidden=layer.out_features, bound=None)
    new, posterior = with_head(model, guide, head, num_data=run.num_data)
    head.get_submodule("block.0").load_state_dict(layer.state_dict())
    for parameter in new.parameters():
        parameter.requires_grad_(False)
    for part in (head.kernel, head.mean):
        part.requires_grad_(True)
    head.inducing_points.requires_grad_(True)
    initialise(new, posterior, run.training)
    fit(
        new,
        posterior,
        run.training,
        recipe=None,
        epochs=EPOCHS,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.0),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, 40 * EPOCHS),
        kl_weight=1.0,
        clip_norm=1.0,
        validation=run.validation,
        num_samples=4,
        seed=run.seed,
    )
    return new, posterior


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
