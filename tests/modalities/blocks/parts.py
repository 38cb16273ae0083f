"""Sizes of small encoders, and blocks made to order."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

from tests.helpers import VOCAB, WIDTH

COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TEXT: dict[str, Any] = {"vocab_size": VOCAB, **COMMON}
IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 8, **COMMON}
SPEECH: dict[str, Any] = {
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    **COMMON,
}


def bart(part: str = "encoder") -> nn.Module:
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 3), ("ffn_dim", 24))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = hf.BartModel(hf.BartConfig(vocab_size=VOCAB, d_model=WIDTH, **sides, **heads))
    return model.get_submodule(part)


IDS = {"input_ids": torch.arange(10).reshape(2, 5) + 2}


class Part(nn.Module):
    """A block made to order: norms, an extra layer, layers that are not called."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        for name in ("query", "key", "value", "out", "up", "down", "gate"):
            self.add_module(name, nn.Linear(4, 4))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        get = self.get_submodule
        if self.kind == "gate first":
            get("gate")(x)
        h = x if self.kind in ("post", "gate first") else x + 0 if self.kind == "hidden" else self.norm(x)
        value = nn.functional.linear(h, get("value").weight) if self.kind == "silent" else get("value")(h)
        h2 = x + get("out")(get("query")(h) * get("key")(h) + value)
        h2 = h if self.kind == "parallel" else h2
        if self.kind == "broken":
            raise IndexError("no such window")
        up = get("up")(h2)
        return h2 + get("down")(up * get("gate")(h2) if self.kind == "gated" else up)
