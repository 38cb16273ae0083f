"""Recordings for methods that adapt the speech encoder: features, windows, batches, and what is independent of what."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bayes_adapters import predict
from bayes_adapters.backbones import SpeechEncoder, speech_encoder
from bayes_adapters.errors import ConfigError, DataError
from examples.studies.verify_prompts.dataset import Item
from examples.studies.verify_prompts.heard import (
    WINDOW,
    HeardPairs,
    MelEncoder,
    WindowedWhisper,
    collate_heard,
    silence,
    windows,
)
from examples.studies.verify_prompts.methods import Build, build
from examples.studies.verify_prompts.pairs import Pair
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")
LENGTHS = (3_000, 8_000, 8_001, 41_234, 80_000)  # samples; 80,000 are all that the encoder takes


@pytest.fixture(scope="module")
def speech(offline: None) -> SpeechEncoder:
    return speech_encoder()


@pytest.fixture(scope="module")
def waves() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    loudness = (1e-4, 0.3, 0.01, 0.1, 0.2)
    return [0.1 * a * torch.randn(n, generator=generator) for a, n in zip(loudness, LENGTHS, strict=True)]


def _items(speech: SpeechEncoder, waves: list[torch.Tensor]) -> list[Item]:
    frames = MelEncoder(speech)(waves)
    tokens = [(101, 2000 + i, *range(3000, 3000 + i), 102) for i in range(len(waves))]
    parts = zip(tokens, frames.values, frames.mask, strict=True)
    return [Item(ids, values[mask], i % 2, i) for i, (ids, values, mask) in enumerate(parts)]


def test_mel_features_are_those_of_the_extractor(speech: SpeechEncoder, waves: list[torch.Tensor]) -> None:
    frames = MelEncoder(speech)(waves)
    assert frames.mask.sum(-1).tolist() == [2 * -(-n // 320) + 2 for n in LENGTHS]
    whole = speech.mel(waves)
    for row, item in enumerate(_items(speech, waves)):
        padded = silence(item.frames).expand(502, 80).clone()
        padded[: len(item.frames)] = item.frames
        torch.testing.assert_close(padded[:500], whole[row].mT, rtol=0, atol=1e-6)
    noisy = frames.values[3][frames.mask[3]]
    assert float(noisy[: LENGTHS[3] // 160 - 2].min()) > float(silence(noisy)), "a noise's own minimum is not silence"
    assert float(silence(frames.values[0])) == -1.5  # so quiet that the floor is the extractor's


def test_frames_of_the_whole_length_are_those_the_other_methods_read(
    speech: SpeechEncoder, waves: list[torch.Tensor]
) -> None:
    batch = collate_heard(_items(speech, waves))
    assert batch.inputs["audio.input_features"].shape == (5, 80, 500)
    hidden = WindowedWhisper.of(speech)(batch.inputs["audio.input_features"]).last_hidden_state
    expected = speech(waves)
    mask = batch.inputs["audio.token_mask"]
    assert mask.sum(-1).tolist() == expected.mask.sum(-1).tolist() == [-(-n // 320) for n in LENGTHS]
    torch.testing.assert_close(hidden[mask], expected.values[expected.mask], rtol=1e-4, atol=1e-4)


def test_a_window_is_as_short_as_half_seconds_allow(speech: SpeechEncoder, waves: list[torch.Tensor]) -> None:
    items = _items(speech, waves)
    assert [windows(len(item.frames)) for item in items] == [1, 1, 2, 6, 10]
    encoder = WindowedWhisper.of(speech)
    for item in items:
        batch = collate_heard([item])
        features = batch.inputs["audio.input_features"]
        assert features.shape[-1] == 2 * WINDOW * windows(len(item.frames))
        assert encoder(features).last_hidden_state.shape[1] == batch.inputs["audio.token_mask"].shape[1]
    with refuses(DataError, 250, 300):
        encoder(torch.zeros(1, 80, 600))


def test_the_copied_encoder_is_frozen_and_has_no_noise(speech: SpeechEncoder) -> None:
    encoder = WindowedWhisper.of(speech)
    assert not any(p.requires_grad for p in encoder.parameters())
    encoder.train()
    features = torch.randn(2, 80, 100)
    assert torch.equal(encoder(features).last_hidden_state, encoder(features).last_hidden_state)
    assert encoder.conv1.weight is not speech.encoder.conv1.weight


def test_features_are_told_from_other_features(speech: SpeechEncoder) -> None:
    prints = {MelEncoder(speech).fingerprint(), MelEncoder(speech_encoder(max_seconds=2.0)).fingerprint()}
    assert len(prints | {speech.fingerprint()}) == 3
    assert MelEncoder(speech).fingerprint() in prints
    with refuses(ConfigError, "pool", 1, 2):
        MelEncoder(speech)([torch.zeros(400)], pool=2)


def test_withheld_audio(speech: SpeechEncoder, waves: list[torch.Tensor]) -> None:
    items = _items(speech, waves)
    items[1] = Item(items[1].input_ids, torch.zeros(0, 80), items[1].label, items[1].index)
    batch = collate_heard(items[:3])
    assert batch.inputs["audio.present"].tolist() == [True, False, True]
    assert batch.inputs["audio.input_features"].shape[-1] == 100
    assert batch.inputs["text.attention_mask"].sum(-1).tolist() == [3, 4, 5]
    alone = collate_heard([items[1]])
    assert sorted(alone.inputs) == ["text.attention_mask", "text.input_ids"]
    assert (alone.ids.tolist(), alone.targets.tolist()) == ([1], [1.0])


@pytest.mark.parametrize("method", ["concat-lora", "cola", "bayesian-cola"])
def test_withheld_audio_changes_nothing_wherever_it_is_withheld(
    method: str, speech: SpeechEncoder, waves: list[torch.Tensor]
) -> None:
    model, guide = build(method, Build(_backbone(speech), 80))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("null" in name or "lora_B" in name or ".up" in name):
                parameter.normal_(0.0, 0.3)
    items = _items(speech, waves)
    silent = [Item(item.input_ids, torch.zeros(0, 80), item.label, item.index) for item in items]
    among = collate_heard([items[0], *silent[1:3]])
    alone = collate_heard(silent[1:3])
    first, second = (predict(model, guide, batch, num_samples=2).probs for batch in (among, alone))
    torch.testing.assert_close(first[1:], second, rtol=1e-4, atol=1e-5)
    heard = predict(model, guide, collate_heard(items[1:3]), num_samples=2).probs
    assert bool(((heard - second).abs() > 1e-3).all())


def test_an_evaluation_never_mixes_windows() -> None:
    batches = list(_Batches())
    assert [i for rows in batches for i in rows] == [0, 3, 6, 1, 4, 7, 2, 5]
    assert batches == [[0, 3], [6], [1, 4], [7], [2, 5]]


class _Batches:
    """PairBatches over a data set of eight examples in three windows, which gives their numbers for batches."""

    def __iter__(self) -> Iterator[list[int]]:
        from examples.studies.verify_prompts.corpus import PairBatches

        class Pairs(HeardPairs):
            def __init__(self) -> None:
                pass

            def __len__(self) -> int:
                return 8

            def describe(self, index: int) -> tuple[Pair, str, int]:
                return Pair(str(index), "en", "x" * index, 1, "right"), "clean", 0

            def window(self, index: int) -> int:
                return index % 3

            def __getitem__(self, index: int) -> int:  # type: ignore[override]
                return index

            def collate(self, items: list[int]) -> list[int]:  # type: ignore[override]
                return items

        batches = PairBatches(Pairs(), 2, shuffle=False)
        assert len(batches) == 5
        yield from batches
        training = PairBatches(Pairs(), 2, shuffle=True)
        assert sorted(len(rows) for rows in training) == [2, 2, 2, 2]
        assert len(training) == 4


def _backbone(speech: SpeechEncoder) -> torch.nn.ModuleDict:
    from bayes_adapters.backbones import text_backbone

    return torch.nn.ModuleDict({"text": text_backbone()[0], "audio": WindowedWhisper.of(speech)})
