"""A home of small backbones, an adapter and recordings, and the command run in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import BertTokenizerFast, WhisperConfig, WhisperFeatureExtractor, WhisperModel

from bayes_adapters import Bernoulli, save
from bayes_adapters.backbones import text_backbone
from bayes_adapters.cli import main
from bayes_adapters.guides import CrossAttention
from bayes_adapters.models import StochasticCore
from tests.cli.parts import WORDS, Run, task
from tests.helpers import WIDTH, bert


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random backbones as local folders, an adapter on them, and recordings."""
    home = tmp_path_factory.mktemp("home")
    bert().save_pretrained(home / "text")
    (home / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(str(home / "vocab.txt")).save_pretrained(home / "text")
    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=20, d_model=WIDTH, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, num_mel_bins=8, max_source_positions=200,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    WhisperModel(config).save_pretrained(home / "speech")
    WhisperFeatureExtractor(feature_size=8).save_pretrained(home / "speech")
    backbone, _ = text_backbone(home / "text")
    torch.manual_seed(4)
    model = StochasticCore(backbone, Bernoulli(), rank=2)
    guide = CrossAttention(model, context_dim=WIDTH, dim=4)
    with torch.no_grad():
        for p in [*model.trainable_parameters().values(), *guide.parameters()]:
            p.add_(0.5 * torch.randn_like(p))
    save(home / "adapter", model, guide, task=task(home))
    time = np.arange(16_000) / 8_000
    tone = 0.3 * np.sin(2 * np.pi * 300 * time)
    soundfile.write(home / "good.wav", tone[:8_000], 8_000)
    soundfile.write(home / "stereo.flac", np.stack([tone, -tone / 2], 1)[:6_000], 8_000)
    rng = np.random.default_rng(0)
    soundfile.write(home / "silent.wav", np.zeros(8_000), 8_000)
    soundfile.write(home / "offset.wav", np.full(8_000, 0.25), 8_000)
    soundfile.write(home / "dither.wav", (rng.random(8_000) + rng.random(8_000) - 1) / 2**15, 8_000)
    soundfile.write(home / "cancelled.wav", np.stack([tone, -tone], 1), 8_000)
    soundfile.write(home / "quiet.wav", tone[:8_000] / 300, 8_000)
    soundfile.write(home / "short.wav", tone[:100], 8_000)
    soundfile.write(home / "long.wav", np.tile(tone, 2), 8_000)
    soundfile.write(home / "empty.wav", tone[:0], 8_000)
    (home / "text.wav").write_text("this is no recording")
    return home


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: exit code, output, errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:  # argparse
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run
