"""Training transforms of a context: rates, powers and stretches, of real frames alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Frames
from bayes_adapters.data.transforms import FrameMasking, FrameNoise, ModalityDropout, Transform
from bayes_adapters.errors import ConfigError
from tests.helpers import token_batch
from tests.instrument import unchecked
from tests.refusals import refuses

TRANSFORMS: list[Transform] = [
    ModalityDropout("audio", 0.5),
    FrameNoise("audio", (-5.0, 20.0)),
    FrameMasking("audio", (0.2, 0.6)),
]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def many(size: int = 4000, frames: int = 10, real: int = 8) -> Batch:
    """Frames of power 4, the last two of ten masked and huge."""
    values = 2.0 * torch.randn(size, frames, 3, generator=rng(5))
    values[:, real:] = 1e4
    mask = (torch.arange(frames) < real).expand(size, frames)
    return Batch({"x": torch.zeros(size, 1)}, context={"audio": Frames(values, mask)})


def test_whole_examples_are_dropped_at_the_rate_asked_for() -> None:
    batch = many()
    seen = ModalityDropout("audio", 0.3)(batch, rng()).context["audio"]
    missing = ~seen.present
    assert float(missing.float().mean()) == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / 4000))
    assert torch.equal(seen.mask[~missing], batch.context["audio"].mask[~missing])
    assert ModalityDropout("audio", 0.0)(batch, rng()).context["audio"].present.all()
    assert not ModalityDropout("audio", 1.0)(batch, rng()).context["audio"].present.any()


@pytest.mark.parametrize("level", [-5.0, 10.0])
def test_noise_has_the_ratio_asked_for_to_the_power_of_real_frames(level: float) -> None:
    batch = many()
    frames, noisy = batch.context["audio"], FrameNoise("audio", (level, level))(batch, rng()).context["audio"]
    added = (noisy.values - frames.values)[frames.mask].square().mean()
    power = frames.values[frames.mask].square().mean()
    assert float(10 * torch.log10(power / added)) == pytest.approx(level, abs=0.1)
    assert torch.equal(noisy.values[~frames.mask], frames.values[~frames.mask])


def test_noise_is_drawn_between_the_ends_for_the_share_of_examples_asked_for() -> None:
    batch = many()
    frames, noisy = batch.context["audio"], FrameNoise("audio", (0.0, 20.0), p=0.25)(batch, rng()).context["audio"]
    added = ((noisy.values - frames.values).square() * frames.mask[..., None]).sum((1, 2))
    clean = added == 0
    assert float(clean.float().mean()) == pytest.approx(0.75, abs=0.03)
    ratio = 10 * torch.log10((frames.values.square() * frames.mask[..., None]).sum((1, 2)) / added)[~clean]
    assert float(ratio.mean()) == pytest.approx(10.0, abs=1.0)
    assert float(ratio.std()) == pytest.approx(20 / math.sqrt(12), abs=0.6)


def test_one_stretch_of_real_frames_is_masked_and_never_all() -> None:
    batch = many(size=500)
    seen = FrameMasking("audio", (0.5, 0.5))(batch, rng()).context["audio"].mask
    assert torch.equal(seen.sum(1), torch.full((500,), 4))
    assert not (seen & ~batch.context["audio"].mask).any()
    hidden = (batch.context["audio"].mask & ~seen).int()
    assert torch.equal((hidden.diff(dim=1) == 1).sum(1) + hidden[:, 0], torch.ones(500))  # it begins once
    starts = hidden.argmax(1)
    assert set(starts.tolist()) == {0, 1, 2, 3, 4}
    assert FrameMasking("audio", (1.0, 1.0))(batch, rng()).context["audio"].mask.sum(1).unique().tolist() == [1]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_is_a_function_of_the_generator_and_leaves_its_batch_alone(transform: Transform) -> None:
    batch = token_batch(40)
    kept = batch.context["audio"].values.clone(), batch.context["audio"].mask.clone()
    first, again, other = (transform(batch, rng(seed)).context["audio"] for seed in (3, 3, 4))
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.mask, again.mask)
    assert not (torch.equal(first.values, other.values) and torch.equal(first.mask, other.mask))
    assert torch.equal(batch.context["audio"].values, kept[0])
    assert torch.equal(batch.context["audio"].mask, kept[1])
    assert not first.present[~batch.context["audio"].present].any(), "what was missing stays missing"
    assert transform(batch.without("audio"), rng()).context == {}


def test_a_batch_may_lack_the_modality_and_have_another() -> None:
    batch = many(size=4)
    other = Batch(batch.inputs, context={"video": batch.context["audio"]})
    for transform in TRANSFORMS:
        assert torch.equal(transform(other, rng()).context["video"].values, other.context["video"].values)


def test_refusals() -> None:
    for wrong in (-0.1, 1.5, True):
        with refuses(ConfigError, "p", wrong):
            ModalityDropout("audio", wrong)
    intervals: list[Any] = [(5.0, 0.0), (0.0, math.inf), 3.0, (1.0, 2.0, 3.0)]
    for interval in intervals:
        with unchecked(), refuses(ConfigError, "snr_db", interval):
            FrameNoise("audio", interval)
    with refuses(ConfigError, "share", (0.5, 1.5)):
        FrameMasking("audio", (0.5, 1.5))
    for transform in TRANSFORMS:
        batch = token_batch()
        with refuses(ConfigError, "'audio'", "audi"):
            transform(Batch(batch.inputs, context={"audi": batch.context["audio"]}), rng())
