"""The grid of encoders: layers that are read, temperatures beside every answer, runs that go on where they stopped."""

from __future__ import annotations

import math
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.backbones import speech_encoder
from bayes_adapters.errors import ConfigError
from examples.studies.backbones import encoders, results
from examples.studies.backbones.experiment import (
    COLDEST,
    HOTTEST,
    METHODS,
    fitted,
    measure,
    scored,
    temperature_of,
    tempered,
)
from examples.studies.verify_prompts import speaker
from examples.studies.verify_prompts.experiment import evaluate
from tests.refusals import refuses
from tests.studies.verify_prompts.parts import SETTINGS


def test_a_block_is_heard_as_the_next_one_reads_it(offline: None) -> None:
    whole = speech_encoder()
    waves = [torch.sin(torch.arange(8000) / 9.0)]
    states = whole.encoder(whole.mel(waves), output_hidden_states=True).hidden_states
    wanted = whole.encoder.layers[2].self_attn_layer_norm(states[2])[0, :25]
    torch.testing.assert_close(encoders.whisper(2)(waves).values[0], wanted, atol=1e-5, rtol=1e-5)
    prints = {layer: encoders.whisper(layer).fingerprint() for layer in (2, 4)}
    assert prints[4] == whole.fingerprint() != prints[2]
    with refuses(ConfigError, "layer=5", "1 to 4"):
        encoders.whisper(5)


def test_a_lower_layer_of_the_lstm_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = nn.LSTM(40, 256, 3, batch_first=True)
    (tmp_path / "resemblyzer").mkdir()
    state = {f"lstm.{name}": value for name, value in lstm.state_dict().items()} | {"linear.bias": torch.zeros(1)}
    torch.save({"model_state": state}, tmp_path / "resemblyzer" / "pretrained.pt")
    monkeypatch.setattr(speaker, "wheel_folder", lambda _: tmp_path)
    first = speaker.speaker_encoder(1)
    assert first._lstm.num_layers == 1
    assert torch.equal(first._lstm.weight_hh_l0, lstm.weight_hh_l0)
    assert speaker.speaker_encoder().fingerprint() == speaker.SpeakerEncoder(lstm).fingerprint() != first.fingerprint()
    with refuses(ConfigError, "layer=4", "1 to 3"):
        speaker.speaker_encoder(4)


def test_answers_under_a_temperature(corpus, trained) -> None:
    settings = replace(SETTINGS, conditions=("clean", "ood-it"))
    records, rows = evaluate(corpus, trained, settings)
    same = scored(tempered(rows, TemperatureScaling(1.0), records[0].samples), records)
    for old, new in zip(records, same, strict=True):
        assert new.method == "caliber-x-temperature"
        for metric in ("auc", "nll", "ece", "auroc_ood", "aurc", "epistemic"):
            assert getattr(new, metric) == pytest.approx(getattr(old, metric), rel=1e-4, nan_ok=True), metric
        assert (new.parameters, new.seconds, new.samples) == (old.parameters, old.seconds, old.samples)
    hot = tempered(rows, TemperatureScaling(2.0), 3)
    logit = math.log(rows[0].probability / (1 - rows[0].probability))
    assert hot[0].probability == pytest.approx(1 / (1 + math.exp(-logit / 2)), rel=1e-4)
    assert hot[0].epistemic / hot[0].total == pytest.approx(rows[0].epistemic / rows[0].total, rel=1e-3)
    assert COLDEST <= fitted(corpus, trained, settings).temperature <= HOTTEST


def test_a_temperature_where_none_is_best() -> None:
    labels = torch.tensor([1.0, 0.0] * 6)
    says = torch.tensor([0.7, 0.4] * 5 + [0.4, 0.3])
    assert temperature_of(says, labels).temperature == TemperatureScaling.fit(says, labels).temperature
    assert temperature_of(1 - says, labels).temperature == HOTTEST
    assert temperature_of(torch.full((12,), 0.5), labels).temperature == HOTTEST
    assert temperature_of(says.where(says != 0.4, 0.6).where(labels == 1, 0.4), labels).temperature == COLDEST


def test_a_run_goes_on_where_it_stopped(corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(*arguments):
        made.append(arguments[2])
        return measure(*arguments)

    settings = replace(SETTINGS, conditions=("clean", "ood-it"))
    monkeypatch.setattr(results, "METHODS", ("lora-fusion",))
    monkeypatch.setattr(results, "SETTINGS", settings)
    monkeypatch.setattr(results, "_corpus", lambda *_: corpus)
    monkeypatch.setattr(results, "measure", counted)
    (tmp_path / "methods").mkdir()
    given = Namespace(runs=tmp_path, epochs=1)
    grid = results.Backbones()
    grid.one("minilm-whisper2", 0, given)
    first = (tmp_path / "minilm-whisper2-0.json").read_text(encoding="utf-8")
    grid.one("minilm-whisper2", 0, given)
    assert made == ["lora-fusion"]
    assert (tmp_path / "minilm-whisper2-0.json").read_text(encoding="utf-8") == first
    records = results.read_records(tmp_path / "minilm-whisper2-0.json")
    assert [r.method for r in records] == ["minilm-whisper2-lora-fusion"] * 2 + [
        "minilm-whisper2-lora-fusion-temperature"
    ] * 2
    lines = results.means(records)
    assert len(lines) == 3
    assert lines[2].startswith("| MiniLM × Whisper 2/4: lora-fusion | 1 | ")
    assert f"{records[0].nll:.3f} → {records[2].nll:.3f}".replace("0.", ".") in lines[2]


def test_cells_are_all_of_text_audio_and_layer() -> None:
    assert len(encoders.CELLS) == 8
    assert [cell.title for cell in encoders.CELLS.values()][2:5] == [
        "MiniLM × LSTM 1/3",
        "MiniLM × LSTM 3/3",
        "SmolLM2 × Whisper 2/4",
    ]
    assert "lora-fusion" in METHODS
