"""Layers that hold several projections in one matrix: one adapter each, whose draws find their examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

from bayes_adapters import ELBO, Bernoulli, predict
from bayes_adapters.systems import build
from tests.helpers import VOCAB, WIDTH, token_batch

SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
PHI3 = SIZES | {"num_key_value_heads": 1, "intermediate_size": 24, "pad_token_id": 0}
NEOX = SIZES | {"intermediate_size": 24, "max_position_embeddings": 32}
GPT2 = {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 32}
FUSED: dict[str, tuple[Any, Any, list[str], list[tuple[int, int]]]] = {
    "phi3": (hf.Phi3Model, hf.Phi3Config(**PHI3), ["qkv_proj", "gate_up_proj"], [(WIDTH, 2 * WIDTH), (WIDTH, 48)]),
    "gpt_neox": (hf.GPTNeoXModel, hf.GPTNeoXConfig(**NEOX), ["query_key_value"], [(WIDTH, 3 * WIDTH)]),
    "falcon": (hf.FalconModel, hf.FalconConfig(**SIZES), ["query_key_value"], [(WIDTH, WIDTH + 2 * 8)]),
    "gpt2": (hf.GPT2Model, hf.GPT2Config(**GPT2), ["c_attn", "c_fc"], [(WIDTH, 3 * WIDTH), (WIDTH, 4 * WIDTH)]),
}


@pytest.mark.parametrize("kind", FUSED)
def test_fused_projections_are_adapted_as_one(kind: str) -> None:
    torch.manual_seed(0)
    cls, config, targets, sizes = FUSED[kind]
    model, guide = build("c-lora", cls(config), Bernoulli(), rank=2, targets=targets)
    layers = model.installed
    assert [(p.lora_A.shape[1], p.lora_B.shape[0]) for p in layers.values()] == sizes
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B)
    ELBO(model, guide)(token_batch()).backward()
    assert all(bool(layer.lora_B.grad.abs().sum() > 0) for layer in layers.values())
    folded = predict(model, guide, token_batch(), num_samples=3)
    alone = predict(model, guide, token_batch(), num_samples=3, chunk_size=1)
    torch.testing.assert_close(folded.mean, alone.mean)
