"""Training transforms of a batch's context: whole examples without it, noise at a drawn strength, masked stretches.

A transform is ``transform(batch, generator) → batch``. Everything random comes from the generator, and the batch that
is given stays as it is. :func:`bayes_adapters.training.transformed` puts transforms behind a stream of batches.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bayes_adapters.data._checks import one_modality
from bayes_adapters.data._transform_checks import check_interval, check_probability, require_modality
from bayes_adapters.data.batch import Batch, Frames


@runtime_checkable
class Transform(Protocol):
    """What :func:`bayes_adapters.training.transformed` takes: a dataclass, or a callable whose ``repr`` says it all."""

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch as training is to see it."""
        ...


@dataclass(frozen=True)
class ModalityDropout:
    """Withhold an example's whole context with probability p: all of its frames are masked.

    A guide with a null context then learns what to answer without; :func:`bayes_adapters.reliability.choose_gate` needs
    that. Examples are dropped independently; of two modalities with a transform each, both may be.

    Args:
        modality: the key of the frames in ``Batch.context``.
        p: 0 to 1. A half trains the answer with and the answer without alike.

    Raises:
        ConfigError: p is no probability; or, when called, the batch has a modality of nearly this name only.

    >>> batch = Batch({"x": torch.zeros(6, 2)}, context={"audio": Frames(torch.ones(6, 3, 2), torch.ones(6, 3).bool())})
    >>> ModalityDropout("audio", p=0.5)(batch, torch.Generator().manual_seed(0)).context["audio"].present.tolist()
    [False, True, False, False, False, True]
    """

    modality: str = "audio"
    p: float = 0.5

    def __post_init__(self) -> None:
        one_modality(self.modality)
        check_probability("p", self.p)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with some examples' context masked; as it is where it has none of this modality."""
        kept = torch.rand(batch.size, generator=generator) >= self.p  # drawn whether or not there is a context
        frames = require_modality(batch, self.modality)
        if frames is None:
            return batch
        return _with(batch, self.modality, frames.values, frames.mask & kept.to(frames.mask.device)[:, None])


@dataclass(frozen=True)
class FrameNoise:
    """Add Gaussian noise to the frames at a signal-to-noise ratio that is drawn for each example.

    ``a_s ← a_s + √(P / 10^(ρ/10)) ε_s``, ε ~ N(0, I), ρ ~ U(low, high) in dB, P the mean square of the example's real
    frames. It is noise of the features; for noise that is heard, corrupt the waveform before it is encoded
    (:func:`bayes_adapters.speech.corruption.corrupt_at_random`).

    Args:
        modality: the key of the frames in ``Batch.context``.
        snr_db: (low, high), dB.
        p: the share of examples that get any.

    Raises:
        ConfigError: the interval is not finite and in order, or p is no probability; or, when called, the batch has a
            modality of nearly this name only.

    >>> frames = Frames(torch.ones(1, 4000, 2), torch.ones(1, 4000).bool())
    >>> batch = Batch({"x": torch.zeros(1, 1)}, context={"audio": frames})
    >>> noisy = FrameNoise("audio", snr_db=(10.0, 10.0))(batch, torch.Generator().manual_seed(0)).context["audio"]
    >>> round(float((noisy.values - 1).square().mean()), 2)  # a tenth of the frames' power
    0.1
    """

    modality: str = "audio"
    snr_db: tuple[float, float] = (0.0, 20.0)
    p: float = 1.0

    def __post_init__(self) -> None:
        one_modality(self.modality)
        check_interval("snr_db", self.snr_db)
        check_probability("p", self.p)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with noisier frames; masked positions stay as they are."""
        chosen = torch.rand(batch.size, generator=generator) < self.p
        ratio = _uniform(self.snr_db, batch.size, generator)
        frames = require_modality(batch, self.modality)
        if frames is None:
            return batch
        values, mask = frames.values, frames.mask[..., None]
        count = frames.mask.sum(1).clamp_min(1) * values.shape[-1]
        power = (values.float() * mask).square().sum((1, 2)) / count
        size = (power / 10 ** (ratio.to(power.device) / 10)).sqrt() * chosen.to(power.device)
        noise = torch.randn(values.shape, generator=generator).to(values.device) * mask
        return _with(batch, self.modality, (values + size[:, None, None] * noise).to(values.dtype), frames.mask)


@dataclass(frozen=True)
class FrameMasking:
    """Mask one stretch of each example's real frames, of a drawn share of them; one frame at least is left.

    Of n real frames ``⌊u n⌋``, u ~ U(low, high), are masked from a uniformly drawn start on.

    Args:
        modality: the key of the frames in ``Batch.context``.
        share: (low, high), within 0 … 1.

    Raises:
        ConfigError: the interval is out of range; or, when called, the batch has a modality of nearly this name only.

    >>> batch = Batch({"x": torch.zeros(1, 2)}, context={"audio": Frames(torch.ones(1, 8, 2), torch.ones(1, 8).bool())})
    >>> masked = FrameMasking("audio", (0.25, 0.25))(batch, torch.Generator().manual_seed(1))
    >>> masked.context["audio"].mask.int().tolist()
    [[1, 0, 0, 1, 1, 1, 1, 1]]
    """

    modality: str = "audio"
    share: tuple[float, float] = (0.0, 0.5)

    def __post_init__(self) -> None:
        one_modality(self.modality)
        check_interval("share", self.share, 0.0, 1.0)

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the batch with fewer real frames."""
        share, place = _uniform(self.share, batch.size, generator), torch.rand(batch.size, generator=generator)
        frames = require_modality(batch, self.modality)
        if frames is None:
            return batch
        mask = frames.mask
        share, place = share.to(mask.device), place.to(mask.device)
        real = mask.sum(1)
        length = torch.minimum((share * real).long(), (real - 1).clamp_min(0))
        start = (place * (real - length + 1)).long()
        order = mask.long().cumsum(1) - 1  # of a real frame, its number among the real ones
        hidden: Bool[Tensor, "B S"] = (order >= start[:, None]) & (order < (start + length)[:, None])
        return _with(batch, self.modality, frames.values, mask & ~hidden)


def _uniform(interval: tuple[float, float], size: int, generator: torch.Generator) -> Float[Tensor, " B"]:
    low, high = interval
    return low + (high - low) * torch.rand(size, generator=generator)


def _with(batch: Batch, modality: str, values: Tensor, mask: Tensor) -> Batch:
    return replace(batch, context={**batch.context, modality: Frames(values, mask)})
