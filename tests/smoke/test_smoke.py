"""What a user does, once each: import, train, save, load, predict, PEFT, the command line, speech.

`make oldest` and `make newest` run this file with the oldest and newest versions that pyproject.toml allows, where
pytest and the optional extras are installed and nothing else of the development tools.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from bayes_adapters import Batch, Bernoulli, Categorical, Frames, adapted_layers, load, predict, save
from bayes_adapters.backbones import speech_encoder
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.heads import GaussianProcessHead
from bayes_adapters.models import LoRA
from bayes_adapters.speech.audio import read_audio
from bayes_adapters.systems import build
from bayes_adapters.training import batches, fit
from bayes_adapters.training.inducing import initialise

VOCABULARY, WIDTH, AUDIO = 30, 16, 6
SYSTEMS = ["lora", "mc-dropout", "blob", "scalabl", "c-lora", "caliber-x"]
LEARNT = 0.35
"""Nats per example; who learns nothing stays at log 2 = 0.69."""


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return BertModel(BertConfig(vocab_size=VOCABULARY, max_position_embeddings=16, **sizes)).eval()


def examples(count: int = 48) -> Batch:
    """Sentences of 3 to 6 tokens from one half of the vocabulary; the label says which."""
    rng = torch.Generator().manual_seed(1)
    half = VOCABULARY // 2
    labels = torch.randint(0, 2, (count,), generator=rng)
    ids = torch.randint(1, half, (count, 6), generator=rng) + half * labels[:, None]
    mask = torch.arange(6) < torch.randint(3, 7, (count, 1), generator=rng)
    heard = torch.arange(5) < torch.randint(0, 6, (count, 1), generator=rng)
    audio = Frames(torch.randn(count, 5, AUDIO, generator=rng), heard)
    return Batch({"input_ids": ids * mask, "attention_mask": mask.long()}, labels, {"audio": audio})


def trained(name: str, epochs: int = 16, **fit_options: Any) -> tuple[Any, Any, list[dict[str, float]]]:
    options = {"context_dim": AUDIO} if name == "caliber-x" else {}
    data = examples()
    model, guide = build(name, bert(), Categorical(2), num_data=data.size, rank=4, **options)
    optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=0.02)  # noqa: E731
    settings: dict[str, Any] = {"kl_weight": 1e-3, "optimizer": optimizer, "progress": False} | fit_options
    result = fit(model, guide, batches(data, 16, seed=0), epochs=epochs, **settings)
    return model, guide, result.history


def test_every_module_can_be_imported() -> None:
    packages = [importlib.import_module(f"bayes_adapters{name}") for name in ("", ".models", ".guides")]
    found = {m.name for p in packages for m in pkgutil.walk_packages(p.__path__[:1], f"{p.__name__}.")}
    assert {"bayes_adapters.inference.guide", "bayes_adapters.models.lora", "bayes_adapters.guides.mean_field"} <= found
    for name in found:
        if not name.endswith("__main__"):
            importlib.import_module(name)


@pytest.mark.parametrize("name", SYSTEMS)
def test_train_save_load_predict(name: str, tmp_path: Path) -> None:
    model, guide, history = trained(name)
    assert history[-1]["nll"] < LEARNT < history[0]["nll"]
    batch = examples(5)
    first = predict(model, guide, batch, num_samples=4, seed=3)
    torch.testing.assert_close(first.mean.sum(-1), torch.ones(5), rtol=0, atol=1e-5)
    assert torch.equal(first.mean, predict(model, guide, batch, num_samples=4, seed=3).mean)
    if name != "lora":
        assert not torch.equal(first.mean, predict(model, guide, batch, num_samples=4, seed=4).mean)
    save(tmp_path / "adapter", model, guide, task={"labels": ["low", "high"]})
    again = load(tmp_path / "adapter", bert())
    assert torch.equal(first.mean, predict(*again, batch, num_samples=4, seed=3).mean)


def test_a_gaussian_process_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    pytest.importorskip("gpytorch")
    data = examples()
    model = LoRA(bert(), Categorical(2), rank=4, head=GaussianProcessHead(8), num_data=data.size)
    guide = Delta(model)
    initialise(model, guide, data)
    history = fit(
        model,
        guide,
        batches(data, 16, seed=0),
        epochs=16,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
        progress=False,
    ).history
    assert history[-1]["nll"] < LEARNT < history[0]["nll"]
    save(tmp_path, model, guide)
    found, expected = (predict(*pair, examples(5), num_samples=4) for pair in (load(tmp_path, bert()), (model, guide)))
    assert torch.equal(found.mean, expected.mean)
    assert found.epistemic.min() > 0


def test_an_interrupted_run_continues_with_the_same_numbers(tmp_path: Path) -> None:
    whole = trained("c-lora", epochs=3)[2]
    trained("c-lora", epochs=2, checkpoint=tmp_path)
    continued = trained("c-lora", epochs=3, checkpoint=tmp_path)[2]
    assert [log["nll"] for log in continued] == [log["nll"] for log in whole]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_adapters_go_to_peft_and_come_back(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, _, _ = trained("lora", epochs=2)
    inputs = examples(4).inputs
    with torch.no_grad():
        expected = model.backbone(**inputs).last_hidden_state
        to_peft(tmp_path, model)
        theirs = peft.PeftModel.from_pretrained(bert(), tmp_path).eval()(**inputs).last_hidden_state
        back = from_peft(tmp_path, bert(), Categorical(2))
        ours = back.backbone(**inputs).last_hidden_state
        plain = bert()(**inputs).last_hidden_state
    assert (plain - expected).abs().max() > 1e-3
    torch.testing.assert_close(theirs, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_the_command_line_reads_a_saved_adapter(tmp_path: Path) -> None:
    model, guide, _ = trained("blob", epochs=1)
    save(tmp_path, model, guide)
    command = str(Path(sys.executable).parent / "bayes-adapters")

    def run(*arguments: str) -> str:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "verify" in run("--help")
    shown = run("show", str(tmp_path))
    assert "mean_field" in shown
    assert str(len(adapted_layers(model.backbone))) in shown


def tone(rate: int, seconds: float = 0.5) -> Tensor:
    return 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(int(rate * seconds)) / rate)


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_a_recording_is_read_at_16_khz(rate: int, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "tone.wav", tone(rate).numpy(), rate)
    wave = read_audio(tmp_path / "tone.wav")
    assert wave.shape == (8000,)
    inner = slice(400, -400)  # the filter meets silence at both ends
    torch.testing.assert_close(wave[inner], tone(16000)[inner], rtol=0, atol=5e-3)


def test_speech_becomes_frames_that_a_guide_reads(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    sizes |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    WhisperModel(WhisperConfig(vocab_size=9, max_source_positions=100, **sizes, **special)).save_pretrained(tmp_path)
    WhisperFeatureExtractor(feature_size=8).save_pretrained(tmp_path)
    frames = speech_encoder(tmp_path, max_seconds=1.0)([tone(16000), tone(16000, 0.25)], pool=2)
    assert frames.values.shape == (2, 13, WIDTH)
    assert frames.mask.sum(1).tolist() == [13, 7]
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    batch = Batch({"input_ids": ids}, context={"audio": frames})
    other = Batch({"input_ids": ids}, context={"audio": Frames(frames.values.flip(0), frames.mask.flip(0))})
    model, guide = build("caliber-x", bert(), Bernoulli(), context_dim=WIDTH, rank=2)
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.normal_()
    heard, swapped = (predict(model, guide, b, num_samples=4, seed=0).mean for b in (batch, other))
    assert (heard - swapped).abs().max() > 1e-4


def test_a_run_is_logged_and_plotted(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from bayes_adapters.analysis.metrics import reliability_bins
    from bayes_adapters.analysis.plots import reliability_diagram

    model, guide, _ = trained("lora", epochs=1, tensorboard=tmp_path / "events")
    assert any((tmp_path / "events").iterdir())
    batch = examples()
    bins = reliability_bins(predict(model, guide, batch).mean, batch.targets)
    reliability_diagram({"lora": {"all": bins}}).savefig(tmp_path / "diagram.png")
    assert (tmp_path / "diagram.png").read_bytes().startswith(b"\x89PNG")


def test_torchaudio_where_it_is_installed_loads_and_agrees_with_read_audio(tmp_path: Path) -> None:
    if importlib.util.find_spec("torchaudio") is None:
        pytest.skip("torchaudio is not installed")
    soundfile = pytest.importorskip("soundfile")
    torchaudio = importlib.import_module("torchaudio")
    soundfile.write(tmp_path / "tone.wav", tone(8000).numpy(), 8000, subtype="FLOAT")
    expected = torchaudio.functional.resample(tone(8000), 8000, 16000)
    torch.testing.assert_close(read_audio(tmp_path / "tone.wav"), expected, rtol=0, atol=1e-3)
