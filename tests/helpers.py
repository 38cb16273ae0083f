"""Tiny random backbones and batches with padding and partly missing audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    OPTConfig,
    OPTModel,
    SwinConfig,
    SwinModel,
    Swinv2Config,
    Swinv2Model,
    ViTConfig,
    ViTModel,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from bayes_adapters import AdapterGuide, AdapterModel, Batch, Bernoulli, Frames, adapted_layers
from bayes_adapters.guides import Amortised, Contextual, CrossAttention, Delta, MeanField, PooledContext
from bayes_adapters.inference.handlers import PosteriorMean
from bayes_adapters.models import StochasticCore

WIDTH = 16
CONTEXT = 6
"""Width of the context's frames."""
VOCAB = 40


def bert(layers: int = 2, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return BertModel(config).eval()


def gpt2(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=layers, n_head=2, n_positions=32)
    return GPT2Model(config).eval()


def llama(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    return LlamaModel(config).eval()


def opt(word_embed_proj_dim: int = WIDTH) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "ffn_dim": 24}
    config = OPTConfig(vocab_size=VOCAB, max_position_embeddings=32, word_embed_proj_dim=word_embed_proj_dim, **sizes)
    return OPTModel(config).eval()


def deberta_v3() -> nn.Module:
    """Relative positions only, in a table with as many rows as max_position_embeddings says: 512 in the real one."""
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    relative = {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]}
    config = DebertaV2Config(
        vocab_size=VOCAB, max_position_embeddings=32, position_biased_input=False, **relative, **sizes
    )
    return DebertaV2Model(config).eval()


def vit(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=16,
        patch_size=8,
    )
    return ViTModel(config).eval()


def swin(depths: Sequence[int] = (2, 2), version: int = 1, window: int = 2) -> nn.Module:
    """16 × 16 images as 8 × 8 patches in the first stage and 4 × 4 in the second; widths 8 and 16."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"embed_dim": WIDTH // 2, "num_heads": [2] * len(depths), "mlp_ratio": 1.5}
    sizes |= {"image_size": 16, "patch_size": 2, "window_size": window, "depths": list(depths), "drop_path_rate": 0.0}
    if version == 1:
        return SwinModel(SwinConfig(**sizes)).eval()
    return Swinv2Model(Swinv2Config(**sizes)).eval()


def whisper(layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=WIDTH,
        encoder_layers=layers,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=10,
    )
    return WhisperEncoder(config).eval()


class Linear(nn.Module):
    """A backbone of one linear layer, so that everything can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 3})()
        self.query = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": self.query(x)})()


def token_batch(size: int = 5, length: int = 7, seed: int = 1, targets: Tensor | None = None) -> Batch:
    """Right-padded tokens; the audio of row 0 is short and that of row 2 is missing (if there are so many rows)."""
    rng = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, length, dtype=torch.long)
    mask[1::3, length // 2 :] = 0
    mask[3::3, 2:] = 0
    heard = torch.ones(size, 9, dtype=torch.bool)
    heard[0, 3:] = False
    heard[2::3] = False
    if targets is None:
        targets = torch.randint(0, 2, (size,), generator=rng).float()
    return Batch(
        {"input_ids": torch.randint(0, VOCAB, (size, length), generator=rng), "attention_mask": mask},
        targets,
        {"audio": Frames(torch.randn(size, 9, CONTEXT, generator=rng), heard)},
    )


def pad(batch: Batch, extra: int, frames: int = 0) -> Batch:
    """Append ``extra`` padding tokens (with arbitrary ids) and ``frames`` masked frames holding noise."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    inputs = {
        "input_ids": torch.cat([ids, torch.randint(0, VOCAB, (batch.size, extra))], 1),
        "attention_mask": torch.cat([mask, mask.new_zeros(batch.size, extra)], 1),
    }
    context = {
        name: Frames(
            torch.cat([f.values, 50 * torch.randn(batch.size, frames, f.values.shape[-1])], 1),
            torch.cat([f.mask, f.mask.new_zeros(batch.size, frames)], 1),
        )
        for name, f in batch.context.items()
    }
    return Batch(inputs, batch.targets, context, batch.index)


def fill_B(model: AdapterModel, scale: float = 0.5) -> AdapterModel:
    """Give every B entries other than zero, so that the cores matter."""
    torch.manual_seed(11)
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.normal_(0.0, scale)
    return model


def core_model(granularity: str = "token", rank: int = 3, **options: object) -> StochasticCore:
    """A two-layer BERT with random cores on query and value, N = 50, B not zero."""
    settings = {"granularity": granularity, "rank": rank, "num_data": 50} | options
    likelihood = settings.pop("likelihood", None) or Bernoulli()
    backbone = settings.pop("backbone", None) or bert()
    return fill_B(StochasticCore(backbone, likelihood, **settings))  # type: ignore[arg-type, return-value]


GUIDES: dict[str, Callable[..., Any]] = {
    "contextual": Contextual,
    "cross_attention": lambda m: CrossAttention(m, context_dim=CONTEXT, dim=4, heads=2),
    "shared_kv": lambda m: CrossAttention(m, context_dim=CONTEXT, dim=4, share_kv=True),
    "pooled_context": lambda m: PooledContext(m, context_dim=CONTEXT, dim=4),
    "projected": lambda m: Amortised(m, context="global_shared_heads", context_dim=CONTEXT, dim=4),
    "mean_field": MeanField,
    "delta": Delta,
}
CASES = [(g, n) for g in ("token", "sequence") for n in GUIDES] + [("global", "mean_field"), ("global", "delta")]


def moments(guide: AdapterGuide, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and scale of the posterior at each site, each conditioned on the posterior means of the sites before."""
    with torch.no_grad(), PosteriorMean():
        guide(batch)
    return {s.name: loc_scale(guide.trace.nodes[s.name]["fn"]) for s in guide.model.sites}


def logits(guide: AdapterGuide, batch: Batch) -> Tensor:
    """The model's output under one draw of the guide."""
    with torch.no_grad():
        guide(batch)
    return guide.trace.nodes["obs"]["fn"].logits  # type: ignore[attr-defined]


def loc_scale(fn: Any) -> tuple[Tensor, Tensor]:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn.loc, fn.scale


def assert_same(
    a: dict[str, tuple[Tensor, Tensor]], b: dict[str, tuple[Tensor, Tensor]], mask: Tensor | None = None
) -> None:
    for name, pair in a.items():
        for x, y in zip(pair, b[name], strict=True):
            if mask is not None:
                x, y = x[mask], y[mask]
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


def differ(a: dict[str, tuple[Tensor, Tensor]], b: dict[str, tuple[Tensor, Tensor]], row: int) -> bool:
    name = next(iter(a))
    return bool((a[name][0][row] - b[name][0][row]).abs().max() > 1e-4)
