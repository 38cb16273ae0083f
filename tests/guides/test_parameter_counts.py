"""How many parameters guides have on a base RoBERTa."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import RobertaConfig, RobertaModel

from bayes_adapters import AdapterModel, Bernoulli
from bayes_adapters.guides import Amortised, Contextual, CrossAttention
from bayes_adapters.models import StochasticCore


def _roberta(layers: int, width: int) -> nn.Module:
    config = RobertaConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=16 if width == 1024 else 12,
        intermediate_size=4,
    )
    with torch.device("meta"):
        return RobertaModel(config)


_BASE = {
    "c": 213_504,
    "co64": 460_864,
    "co8": 233_672,
    "x64": 2_683_392,
    "s64": 422_400,
    "x8": 522_240,
    "s8": 239_616,
}


def _coco(model: AdapterModel, **options: Any) -> Amortised:
    return Amortised(model, context="global_shared_heads", context_dim=768, null_context=False, **options)


@pytest.mark.parametrize(
    ("layers", "width", "lora", "counts"),
    [
        (12, 768, 294_912, _BASE),
        (24, 1024, 786_432, {"c": 427_008, "co64": 872_512, "x64": 5_366_784, "s64": 746_496}),
    ],
)
def test_parameter_counts_of_roberta(layers: int, width: int, lora: int, counts: dict[str, int]) -> None:
    model = StochasticCore(_roberta(layers, width), Bernoulli(), rank=8)
    assert len(model.sites) == 2 * layers
    assert sum(p.numel() for n, p in model.trainable_parameters().items() if "lora_" in n) == lora
    built = {
        "c": lambda: Contextual(model),
        "co64": lambda: _coco(model),
        "co8": lambda: _coco(model, dim=8),
        "x64": lambda: CrossAttention(model, context_dim=768, null_context=False),
        "s64": lambda: CrossAttention(model, context_dim=768, null_context=False, share_kv=True),
        "x8": lambda: CrossAttention(model, context_dim=768, dim=8, null_context=False),
        "s8": lambda: CrossAttention(model, context_dim=768, dim=8, null_context=False, share_kv=True),
    }
    assert {key: sum(p.numel() for p in built[key]().parameters()) for key in counts} == counts
