"""Scales of context and targets: standardising frames, and a warning where something is far from unit scale."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.data.batch import Batch, Frames
from bayes_adapters.errors import DataError, ScaleWarning

_LARGE, _SMALL = 100.0, 1e-3


def frame_statistics(frames: Iterable[Frames]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    """Return mean and standard deviation of every feature over all real frames, float32.

    Guides compute attention and posterior scales from the frames as they are; features of thousands (Hz, raw samples)
    saturate them, and the KL explodes. Take the statistics of the training data, keep them, and give every batch, of
    prediction too, ``frames.standardised(mean, scale)``.

    Args:
        frames: of the training data, all of one width d; read once.

    Returns:
        ``(mean, scale)``, each of shape (d,); the scale of a constant feature is 1.

    Raises:
        DataError: there is no real frame.

    >>> pitch = Frames(torch.tensor([[[100.0], [300.0], [0.0]]]), torch.tensor([[True, True, False]]))
    >>> mean, scale = frame_statistics([pitch])
    >>> mean, scale
    (tensor([200.]), tensor([100.]))
    >>> pitch.standardised(mean, scale).values[0, :2, 0]
    tensor([-1.,  1.])
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for part in frames:
        real = part.values[part.mask].detach().cpu().double()
        if not len(real):
            continue
        # Chan, Golub and LeVeque's update, which does not cancel as the difference of two large sums does.
        step, total = real.mean(0) - mean, count + len(real)
        squares = squares + (real - real.mean(0)).square().sum(0) + step.square() * count * len(real) / total
        mean, count = mean + step * len(real) / total, total
    if not count:
        raise DataError("No frame is real, so there is nothing to take statistics of. Are the masks False everywhere?")
    scale = (squares / count).sqrt()
    return mean.float(), torch.where(scale > 0, scale, 1.0).float()


def warn_of_scales(batch: Batch, advice: Iterable[str], reads: Iterable[str]) -> None:
    """Warn of frames that are far from unit scale, and of what the likelihood says of its targets.

    Args:
        batch: the first one of a training run.
        advice: of the likelihood.
        reads: modalities that model or guide look at.

    Warns:
        ScaleWarning: the root mean square of real frames lies outside 0.001 … 100, or there is ``advice``.
    """
    said = list(advice)
    for name in sorted(set(reads) & set(batch.context)):
        frames = batch.context[name]
        weight = frames.mask[..., None].float()
        size = float(
            ((frames.values.float() * weight).square().sum() / (weight.sum() * frames.values.shape[-1])).sqrt()
        )
        if size > _LARGE or 0.0 < size < _SMALL:
            said.append(
                f"The root mean square of the context {name!r} is {size:.3g}, far from 1: posteriors that depend on it "
                "saturate or ignore it. Standardise it: mean, scale = bayes_adapters.data.frame_statistics(frames of "
                "the training data), and frames.standardised(mean, scale) for every batch."
            )
    for text in said:
        warnings.warn(text, ScaleWarning, stacklevel=2)
