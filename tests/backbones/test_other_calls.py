"""Backbones that call a layer otherwise: twice, by its dtype, past it, or with checkpoints."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, T5Config, T5EncoderModel

from bayes_adapters import (
    ELBO,
    Batch,
    Bernoulli,
    select,
)
from bayes_adapters.adapters.installation import install
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, MeanField
from bayes_adapters.models import LoRA, StochasticCore
from tests.helpers import VOCAB, WIDTH, opt, token_batch
from tests.refusals import refuses


def _albert() -> nn.Module:
    config = AlbertConfig(
        vocab_size=VOCAB,
        embedding_size=8,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    return AlbertModel(config).eval()


def test_a_layer_applied_twice_has_a_global_core_or_none() -> None:
    model = StochasticCore(_albert(), Bernoulli(), rank=2)
    with refuses(ConfigError, "granularity='global'", "ALBERT"):
        Contextual(model)(token_batch())
    shared = StochasticCore(_albert(), Bernoulli(), rank=2, granularity="global", num_data=50)
    assert bool(ELBO(shared, MeanField(shared))(token_batch()).isfinite())


def test_opt_350m_returns_hidden_states_of_the_embeddings_width() -> None:
    model = LoRA(opt(word_embed_proj_dim=8), Bernoulli(), targets=["q_proj"], rank=2)
    assert model.head.weight.shape == (1, 8)
    model(token_batch())


def test_t5_which_asks_a_layer_for_its_dtype_can_be_adapted_everywhere() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "dropout_rate": 0.0}
    backbone = T5EncoderModel(T5Config(vocab_size=40, **sizes)).eval().requires_grad_(False)
    ids = torch.arange(10).reshape(2, 5)
    before = backbone(input_ids=ids).last_hidden_state
    layers = install(backbone, select(backbone, "all-linear"), rank=2, alpha=4.0)
    assert torch.equal(backbone(input_ids=ids).last_hidden_state, before)
    layer = layers["encoder.block.0.layer.1.DenseReluDense.wo"]
    with torch.no_grad():
        layer.lora_B.fill_(1.0)
    assert not torch.allclose(backbone(input_ids=ids).last_hidden_state, before)
    assert (layer.weight.dtype, layer.weight.shape) == (torch.float32, (16, 24))
    for compute in (
        lambda w: torch.ones(24) @ w.T,
        lambda w: nn.functional.linear(torch.ones(2, 24), w),
        lambda w: w + 1,
        lambda w: torch.cat([w, w]),  # WavLM does so with its biases; the message named no layer
    ):
        with refuses(ConfigError, "its adapter"):
            compute(layer.weight)


class _Attention(nn.Module):
    """torch's own attention multiplies by the weight of its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 8})()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": self.attention(x, x, x)[0]})()


def test_a_backbone_that_goes_past_the_adapter_is_refused() -> None:
    model = LoRA(_Attention(), Bernoulli(), targets="all-linear", rank=2)
    with refuses(ConfigError, "'attention.out_proj'", "exclude=[...]"):
        model(Batch({"x": torch.randn(2, 3, 8)}))
