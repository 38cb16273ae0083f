"""Tiny language models and prompts of different lengths, padded on the left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from bayes_adapters import AdapterGuide, AdapterModel, adapted_layers
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.models import LoRA, StochasticCore, StochasticDown

VOCAB = 40


def llama() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=1,
    )
    return _lively(LlamaForCausalLM(config))


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32, pad_token_id=0, eos_token_id=None
    )
    return _lively(GPT2LMHeadModel(config))


def mamba() -> Any:
    torch.manual_seed(0)
    config = MambaConfig(
        vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=1, pad_token_id=0, eos_token_id=None
    )
    return _lively(MambaForCausalLM(config))


def t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, eos_token_id=None, pad_token_id=0
    )
    config.decoder_start_token_id = 0
    return _lively(T5ForConditionalGeneration(config))


def _lively(net: Any) -> Any:
    """Spread the logits: with torch's small initial weights every token is as likely as any other."""
    with torch.no_grad():
        for p in net.parameters():
            if p.dim() > 1:
                p.mul_(6.0)
    return net.eval()


def prompts() -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10], [0, 11, 12, 13]])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])}


def pair(kind: str, net: nn.Module, targets: list[str]) -> tuple[AdapterModel, AdapterGuide]:
    options: dict[str, Any] = {"targets": targets, "rank": 2, "head": LanguageModelHead()}
    if kind == "lora":
        model: AdapterModel = LoRA(net, NextToken(VOCAB), **options)
        guide: AdapterGuide = Delta(model)
    elif kind == "blob":
        model = StochasticDown(net, NextToken(VOCAB), num_data=10, **options)
        guide = MeanField(model)
    else:
        model = StochasticCore(net, NextToken(VOCAB), **options)
        guide = Contextual(model)
    with torch.no_grad():
        for layer in adapted_layers(net).values():
            layer.lora_B.normal_(0.0, 1.0)
    return model, guide
