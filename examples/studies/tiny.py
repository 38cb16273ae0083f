"""Tiny random backbones of ten kinds, and batches for them: what the matrix of methods is tried on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from bayes_adapters import Batch, Frames

WIDTH, CONTEXT, VOCAB, TOKENS, SIZE = 8, 5, 20, 6, 4
"""Width of hidden states and of context frames, words, tokens a text, examples a batch."""

_COMMON = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_TEXT = _COMMON | {"vocab_size": VOCAB, "max_position_embeddings": 16, "pad_token_id": 0}


def bert() -> nn.Module:
    """BERT."""
    return hf.BertModel(hf.BertConfig(**_TEXT, **_NO_DROPOUT))


def roberta() -> nn.Module:
    """RoBERTa."""
    return hf.RobertaModel(hf.RobertaConfig(**_TEXT, **_NO_DROPOUT))


def distilbert() -> nn.Module:
    """DistilBERT."""
    sizes = {"dim": WIDTH, "n_layers": 1, "n_heads": 2, "hidden_dim": 12, "dropout": 0.0, "attention_dropout": 0.0}
    return hf.DistilBertModel(hf.DistilBertConfig(vocab_size=VOCAB, max_position_embeddings=16, **sizes))


def gpt2() -> nn.Module:
    """GPT-2."""
    sizes = {"n_embd": WIDTH, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": VOCAB}
    tokens = {"bos_token_id": 1, "eos_token_id": 1}
    return hf.GPT2Model(hf.GPT2Config(**sizes, **tokens, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0))


def llama() -> nn.Module:
    """Llama."""
    return hf.LlamaModel(hf.LlamaConfig(**_TEXT, num_key_value_heads=1))


def vit() -> nn.Module:
    """ViT."""
    return hf.ViTModel(hf.ViTConfig(**_COMMON, **_NO_DROPOUT, image_size=8, patch_size=4))


_STAGES = {"embed_dim": WIDTH // 2, "depths": [1, 1], "num_heads": [1, 2], "mlp_ratio": 1.5, "window_size": 2}
_STAGES |= {"image_size": 8, "patch_size": 2, "drop_path_rate": 0.0}


def swin() -> nn.Module:
    """Swin: two stages, windows of 2 × 2 patches."""
    return hf.SwinModel(hf.SwinConfig(**_STAGES, **_NO_DROPOUT))


def swin_v2() -> nn.Module:
    """Swin V2: the same sizes."""
    return hf.Swinv2Model(hf.Swinv2Config(**_STAGES, **_NO_DROPOUT))


def whisper() -> nn.Module:
    """Whisper's encoder."""
    sizes = {"d_model": WIDTH, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12}
    return WhisperEncoder(hf.WhisperConfig(**sizes, num_mel_bins=4, max_source_positions=8, dropout=0.0))


def wav2vec2() -> nn.Module:
    """wav2vec 2.0."""
    convolutions = {"conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    noise = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "feat_proj_dropout": 0.0}
    off = {"layerdrop": 0.0, "apply_spec_augment": False}
    return hf.Wav2Vec2Model(hf.Wav2Vec2Config(**_COMMON, **convolutions, **positions, **noise, **off))


BACKBONES: dict[str, Callable[[], nn.Module]] = {
    "BERT": bert,
    "RoBERTa": roberta,
    "DistilBERT": distilbert,
    "GPT-2": gpt2,
    "Llama": llama,
    "ViT": vit,
    "Swin": swin,
    "Swin V2": swin_v2,
    "Whisper encoder": whisper,
    "wav2vec 2.0": wav2vec2,
}


def make(name: str) -> nn.Module:
    """Return the backbone ``name``, or with two names joined by " + " both in an ``nn.ModuleDict`` as first, second.

    The weights are the same at every call.
    """
    parts = name.split(" + ")
    if len(parts) == 2:
        return nn.ModuleDict({"first": make(parts[0]), "second": make(parts[1])})
    with torch.random.fork_rng(), _quiet():
        torch.manual_seed(0)
        return BACKBONES[name]().eval()


def batch(name: str, targets: Tensor) -> Batch:
    """Return a batch of :data:`SIZE` examples for :func:`make`'s backbone, with audio that one example lacks."""
    noise = torch.Generator().manual_seed(1)
    parts = name.split(" + ")
    inputs = _inputs(name, noise)
    if len(parts) == 2:
        named = zip(("first", "second"), parts, strict=True)
        inputs = {f"{key}.{k}": v for key, part in named for k, v in _inputs(part, noise).items()}
    heard = torch.ones(SIZE, 3, dtype=torch.bool)
    heard[1], heard[2, 1:] = False, False
    return Batch(inputs, targets, {"audio": Frames(torch.randn(SIZE, 3, CONTEXT, generator=noise), heard)})


def length(name: str) -> int:
    """Return the number of tokens, patches or frames that the backbone returns."""
    with torch.no_grad():
        hidden: Tensor = make(name)(**_inputs(name, torch.Generator())).last_hidden_state
    return hidden.shape[1]


def _inputs(name: str, noise: torch.Generator) -> dict[str, Tensor]:
    if name in ("ViT", "Swin", "Swin V2"):
        return {"pixel_values": torch.randn(SIZE, 3, 8, 8, generator=noise)}
    if name == "Whisper encoder":
        return {"input_features": torch.randn(SIZE, 4, 16, generator=noise)}
    if name == "wav2vec 2.0":
        return {"input_values": torch.randn(SIZE, 80, generator=noise)}
    mask = torch.ones(SIZE, TOKENS, dtype=torch.long)
    mask[1, 3:], mask[3, 5:] = 0, 0
    return {"input_ids": torch.randint(1, VOCAB, (SIZE, TOKENS), generator=noise) * mask, "attention_mask": mask}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' remarks about configurations as small as these."""
    logger: Any = logging.getLogger("transformers.configuration_utils")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
