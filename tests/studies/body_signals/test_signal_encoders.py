"""Encoders of body signals: samples become seconds, masks hold, and adapters fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, Frames, predict
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from examples.studies.body_signals.data import MODALITIES, Signals
from examples.studies.body_signals.encoders import SignalEncoder, build_encoder, encode
from tests.refusals import refuses
from tests.studies.body_signals.parts import SMALL


@pytest.mark.parametrize("name", list(MODALITIES))
def test_frames_of_samples_become_frames_of_seconds(name: str, signals: Signals) -> None:
    out = encode(build_encoder(name, SMALL, 0), signals.frames(name)[:5], batch_size=2)
    assert out.values.shape == (5, 30, 16)
    assert out.mask.all()
    assert not out.values.requires_grad


def test_masked_samples_change_nothing_but_their_own_second() -> None:
    encoder, values = build_encoder("EDA", SMALL, 0), torch.randn(3, 120, 1)
    mask = torch.ones(3, 120, dtype=torch.bool)
    mask[0, 41] = False  # one sample of second 10
    mask[2] = False
    changed = values.clone()
    changed[0, 40:44], changed[2] = 7.0, -3.0
    first, second = encoder.encode(Frames(values, mask)), encoder.encode(Frames(changed, mask))
    assert first.mask[0].tolist() == [s != 10 for s in range(30)]
    assert first.present.tolist() == [True, True, False]
    assert torch.equal(first.values[0, first.mask[0]], second.values[0, first.mask[0]])
    assert torch.equal(first.values[1], second.values[1])
    assert first.values.isfinite().all()


@pytest.mark.parametrize("shape", [(2, 120, 3), (2, 118, 1), (2, 124, 1), (2, 0, 1)])
def test_another_signal_is_refused(shape: tuple[int, ...]) -> None:
    encoder = build_encoder("EDA", SMALL, 0)
    with refuses(DataError, "(B, S, 1)", 4, shape):
        encoder.encode(Frames(torch.zeros(shape), torch.ones(shape[:2], dtype=torch.bool)))


@pytest.mark.parametrize("sizes", [{"width": 15}, {"layers": 0}])
def test_sizes_that_do_not_fit(sizes: dict[str, int]) -> None:
    with refuses(ConfigError, SMALL.__class__.__name__):
        SignalEncoder(MODALITIES["HR"], replace(SMALL, **sizes))


def test_an_encoder_takes_adapters_and_is_a_backbone() -> None:
    encoder, signal = build_encoder("HR", SMALL, 0), torch.randn(4, 30, 1)
    frozen = encoder(signal).last_hidden_state
    model = LoRA(encoder, Bernoulli(), rank=2)
    assert model.layers == [f"transformer.encoder.layer.0.attention.self.{p}" for p in ("query", "value")]
    batch = Batch({"signal": signal})
    before = predict(model, Delta(model), batch).probs
    with torch.no_grad():
        for name, parameter in model.trainable_parameters().items():
            if "backbone" in name:
                parameter.add_(0.5)
    assert before.shape == (4,)
    assert not torch.allclose(predict(model, Delta(model), batch).probs, before)
    with model.adapters_disabled():
        assert torch.equal(encoder(signal).last_hidden_state, frozen)
