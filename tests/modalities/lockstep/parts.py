"""Encoders and small chains of layers to run in lock-step, and what tests ask of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DistilBertConfig, DistilBertModel, Wav2Vec2Config, Wav2Vec2Model

from bayes_adapters.modalities.lockstep import Tap
from tests.helpers import VOCAB, WIDTH, bert, vit, whisper


def distilbert(layers: int = 2) -> nn.Module:
    torch.manual_seed(1)
    config = DistilBertConfig(vocab_size=VOCAB, dim=WIDTH, n_layers=layers, n_heads=2, hidden_dim=24)
    return DistilBertModel(config).eval()


def wav2vec2(layers: int = 2, **options: Any) -> nn.Module:
    torch.manual_seed(2)
    config = Wav2Vec2Config(
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        conv_dim=(8, 8),
        conv_stride=(2, 2),
        conv_kernel=(3, 3),
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        **options,
    )
    return Wav2Vec2Model(config).eval()


IDS = {"input_ids": torch.arange(10).reshape(2, 5), "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
ENCODERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], str]] = {
    "bert": (bert, IDS, "encoder.layer"),
    "distilbert": (distilbert, IDS, "transformer.layer"),
    "vit": (vit, {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)}, "layers"),
    "whisper": (whisper, {"input_features": torch.linspace(-1, 1, 2 * 8 * 20).reshape(2, 8, 20)}, "layers"),
    "wav2vec2": (wav2vec2, {"input_values": torch.linspace(-1, 1, 80).reshape(2, 40).sin()}, "encoder.layers"),
}
"""name → how to build it, what to call it with, where its blocks are."""


def encoders() -> tuple[dict[str, nn.Module], dict[str, dict[str, Tensor]], dict[str, list[Tap]]]:
    """All encoders, with a tap at the input and output of each block."""
    modules = {name: build() for name, (build, _, _) in ENCODERS.items()}
    calls = {name: call for name, (_, call, _) in ENCODERS.items()}
    taps = {
        name: [Tap(2 * i + side, f"{path}.{i}", ("input", "output")[side]) for i in range(2) for side in range(2)]
        for name, (_, _, path) in ENCODERS.items()
    }
    return modules, calls, taps


def unchanged(step: int, tensors: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return {}


class Chain(nn.Module):
    """Three linear layers, the middle one with a keyword argument."""

    def __init__(self, width: int = 3, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.one, self.two, self.three = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.three(self.two(input=self.one(x).tanh()).tanh())


X = torch.tensor([[0.5, -1.0, 2.0]])
PAIR = {"a": [Tap(0, "two", "input")], "b": [Tap(0, "two", "input")]}


def pair() -> dict[str, nn.Module]:
    return {"a": Chain(seed=1), "b": Chain(seed=2)}


BOTH = {"a": {"x": X}, "b": {"x": -X}}


class Inside(nn.Module):
    """Runs its layer within a context of its own."""

    def __init__(self, context: Callable[[], Any]) -> None:
        super().__init__()
        self.part, self.last, self.context = nn.Linear(3, 3), nn.Linear(3, 3), context
        self.left = False

    def forward(self, x: Tensor) -> Tensor:
        try:
            with self.context():
                h = self.part(x)
        finally:
            self.left = True
        return self.last(h.clone().to(x.dtype))
