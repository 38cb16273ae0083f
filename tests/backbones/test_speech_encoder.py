"""The speech encoder: windows, pooling and batches change nothing that they should not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from bayes_adapters.backbones import (
    TEXT_BACKBONE,
    SpeechEncoder,
    speech_encoder,
)
from bayes_adapters.errors import ConfigError, DataError
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def short() -> SpeechEncoder:
    return speech_encoder(max_seconds=2.0)


def hum(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    return torch.sin(2 * torch.pi * (150 + 100 * time) * time) * 0.3 + 0.01 * torch.randn(samples, generator=generator)


def test_speech_encoder_is_frozen_and_short(short: SpeechEncoder) -> None:
    assert (short.positions, short.width, short.max_seconds) == (100, 384, 2.0)
    assert not short.encoder.training
    assert not any(p.requires_grad for p in short.encoder.parameters())
    frames = short([hum(16_000), hum(4_001), hum(32_000)], pool=2)
    assert frames.values.shape == (3, 50, 384)
    assert frames.mask.sum(1).tolist() == [25, 7, 50]
    assert torch.isfinite(frames.values).all()
    assert not frames.values[~frames.mask].any()


def test_pooling_averages_real_positions_only(short: SpeechEncoder) -> None:
    wave = hum(4_001)  # 13 positions: the last pool of two holds one
    fine, coarse = short([wave]).values[0], short([wave], pool=2).values[0]
    assert fine.shape == (13, 384)
    torch.testing.assert_close(coarse[:6], fine[:12].unflatten(0, (6, 2)).mean(1))
    torch.testing.assert_close(coarse[6], fine[12])


def test_batching_changes_nothing(short: SpeechEncoder) -> None:
    waves = [hum(16_000), hum(9_000, 1), hum(30_000, 2)]
    together = short(waves)
    for row, wave in enumerate(waves):
        alone = short([wave])
        torch.testing.assert_close(together.values[row][together.mask[row]], alone.values[0], atol=1e-4, rtol=1e-4)


def test_long_recordings_are_encoded_in_windows(short: SpeechEncoder) -> None:
    """Each window gives the frames it gives alone; what fits into one window is as before."""
    waves = [hum(16_000), hum(70_000, 1), hum(64_000, 2), hum(32_001, 3)]
    frames = short.long(waves, pool=2, batch_size=3)
    assert frames.mask.sum(1).tolist() == [25, 110, 100, 51]
    assert frames.values.shape == (4, 110, 384)
    assert not frames.values[~frames.mask].any()
    torch.testing.assert_close(frames.values[0, :25], short([waves[0]], pool=2).values[0], atol=1e-4, rtol=1e-4)
    pieces = [short([piece], pool=2).values[0] for piece in waves[1].split(32_000)]
    assert [len(piece) for piece in pieces] == [50, 50, 10]
    torch.testing.assert_close(frames.values[1], torch.cat(pieces), atol=1e-4, rtol=1e-4)
    assert short.long([waves[1]], pool=3).values.shape[1] == math.ceil(219 / 3)  # windows of 99 positions
    for pool, size in ((0, 1), (101, 1), (1, 0)):
        with pytest.raises(ConfigError):
            short.long(waves, pool=pool, batch_size=size)
    for unusable in ([], [hum(0)]):
        with pytest.raises(DataError):
            short.long(unusable)


def test_short_encoder_beside_the_thirty_second_one(short: SpeechEncoder) -> None:
    """Equal before attention (away from the cut); nearly parallel after it, since less silence is attended to."""
    full, wave = speech_encoder(max_seconds=30.0), hum(24_000)
    near = short.mel([wave])[..., :190]
    torch.testing.assert_close(near, full.mel([wave])[..., :190])
    stems = []
    for model in (short, full):
        encoder = model.encoder
        mel = torch.nn.functional.gelu(encoder.conv1(model.mel([wave])))
        stems.append(torch.nn.functional.gelu(encoder.conv2(mel)).mT + encoder.embed_positions.weight)
    torch.testing.assert_close(stems[0][:, :90], stems[1][:, :90])
    cosine = torch.nn.functional.cosine_similarity(short([wave]).values, full([wave]).values, dim=-1)
    assert cosine.mean() > 0.7  # on real speech with 5 s it is 0.98: tests/studies/verify_prompts/test_prompts.py


def test_a_layer_gives_the_output_of_that_block(short: SpeechEncoder) -> None:
    wave = hum(16_000)
    with torch.no_grad():
        states = short.encoder(short.mel([wave]), output_hidden_states=True).hidden_states
    blocks = len(short.encoder.layers)
    assert len(states) == blocks + 1
    for layer in (1, blocks - 1):
        lower = speech_encoder(max_seconds=2.0, layer=layer)
        torch.testing.assert_close(lower([wave]).values[0], states[layer][0, :50], atol=1e-4, rtol=1e-4)
        assert lower.long([wave, hum(40_000)]).values.shape == (2, 125, 384)
        assert lower.fingerprint() != short.fingerprint()
    for wrong in (0, blocks + 1, -1):
        with refuses(ConfigError, "layer", 1, blocks, wrong):
            speech_encoder(max_seconds=2.0, layer=wrong)


def test_fingerprint_follows_weights_and_length(short: SpeechEncoder) -> None:
    again = speech_encoder(max_seconds=2.0)
    assert again.fingerprint() == short.fingerprint() != speech_encoder(max_seconds=1.0).fingerprint()
    next(iter(again.encoder.parameters())).data[0] += 1e-3
    assert again.fingerprint() != short.fingerprint()


@pytest.mark.parametrize(
    ("waves", "facts"), [([], ("recording",)), ([hum(32_001)], (32001, 32000)), ([hum(0)], ("shape", "(0,)"))]
)
def test_unusable_waves(short: SpeechEncoder, waves: list[Tensor], facts: tuple[object, ...]) -> None:
    with refuses(DataError, *facts):
        short(waves)


def test_options_out_of_range(short: SpeechEncoder) -> None:
    for seconds in (0.0, -1.0, 31.0, float("nan")):
        with refuses(ConfigError, "max_seconds", 30, seconds):
            speech_encoder(max_seconds=seconds)
    with refuses(ConfigError, "pool", 1, 0):
        short([hum(800)], pool=0)
    with refuses(ConfigError, "'bert'", "'whisper'"):
        speech_encoder(TEXT_BACKBONE)
