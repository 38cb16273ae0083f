"""Small backbones with random weights, one for each type of model that is known to be a stack of blocks.

They are in float64: a matrix product of few rows may take another kernel than one of many, and add in another order.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from bayes_adapters import Batch

WORDS, WIDTH = 40, 16
_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
_SMALL = {"hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
_TEXT = _SMALL | _IDS | {"vocab_size": WORDS, "max_position_embeddings": 32}
_STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BERT = _TEXT | _STILL
_LLAMA = _TEXT | {"num_key_value_heads": 1}
_IMAGE = _SMALL | {"image_size": 16, "patch_size": 8}
_SWIN = {"embed_dim": 8, "num_heads": [2, 2], "image_size": 16, "patch_size": 2, "window_size": 2, "depths": [2, 2]}
_WAVE = _SMALL | {"conv_dim": (8, 8), "conv_stride": (4, 2), "conv_kernel": (8, 3), "num_feat_extract_layers": 2}
_WAVE |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
_BART = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
_BART |= _IDS | {"vocab_size": WORDS, "d_model": WIDTH, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
_BART |= {"max_position_embeddings": 32, "decoder_start_token_id": 2, "dropout": 0.0}
_T5 = {
    "vocab_size": WORDS,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
}
_WHISPER = _BART | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 32}

TYPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bart": ("Bart", "source, target", _BART),
    "bert": ("Bert", "text", _BERT),
    "camembert": ("Camembert", "text", _BERT),
    "clip_vision_model": ("CLIPVision", "image", _IMAGE),
    "deit": ("DeiT", "image", _IMAGE),
    "dinov2": ("Dinov2", "image", _IMAGE),
    "distilbert": ("DistilBert", "text", {"vocab_size": WORDS, "dim": WIDTH, "n_layers": 3, "n_heads": 2}),
    "electra": ("Electra", "text", _BERT | {"embedding_size": 8}),
    "gemma": ("Gemma", "text", _LLAMA | {"head_dim": 8}),
    "gpt2": ("GPT2", "text", _IDS | {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 3, "n_head": 2}),
    "gpt_neox": ("GPTNeoX", "text", _TEXT),
    "hubert": ("Hubert", "wave", _WAVE),
    "llama": ("Llama", "text", _LLAMA),
    "mbart": ("MBart", "source, target", _BART),
    "mistral": ("Mistral", "text", _LLAMA),
    "modernbert": ("ModernBert", "text", _TEXT | {"global_attn_every_n_layers": 2, "local_attention": 4}),
    "mpnet": ("MPNet", "text", _BERT),
    "mt5": ("MT5", "source, target", _T5),
    "opt": ("OPT", "text", _TEXT | {"ffn_dim": 24, "word_embed_proj_dim": WIDTH}),
    "phi": ("Phi", "text", _TEXT),
    "qwen2": ("Qwen2", "text", _LLAMA),
    "qwen3": ("Qwen3", "text", _LLAMA | {"head_dim": 8}),
    "roberta": ("Roberta", "text", _BERT),
    "siglip_vision_model": ("SiglipVision", "image", _IMAGE),
    "swin": ("Swin", "image", _SWIN),
    "swinv2": ("Swinv2", "image", _SWIN),
    "t5": ("T5", "source, target", _T5),
    "vit": ("ViT", "image", _IMAGE),
    "wav2vec2": ("Wav2Vec2", "wave", _WAVE),
    "whisper": ("Whisper", "sound, target", _WHISPER),
    "xlm-roberta": ("XLMRoberta", "text", _BERT),
}
"""Type of model → the beginning of its class's name, what it reads, and its sizes."""


def backbone(kind: str, **changes: Any) -> nn.Module:
    """Make a model of this type in eval mode; every one has the same weights."""
    name, _, sizes = TYPES[kind]
    config = getattr(transformers, f"{name}Config")(**sizes | changes)
    torch.manual_seed(0)
    made: nn.Module = getattr(transformers, f"{name}Model")(config)
    return made.double().eval()


def whisper_encoder() -> nn.Module:
    torch.manual_seed(0)
    return WhisperEncoder(transformers.WhisperConfig(**_WHISPER)).double().eval()


def batch(reads: str, size: int = 4, tokens: int = 7) -> Batch:
    """Examples of what a model ``reads``; every third text is padded."""
    rng = torch.Generator().manual_seed(3)
    mask = torch.ones(size, tokens, dtype=torch.long)
    mask[1::3, tokens // 2 :] = 0
    ids = torch.randint(3, WORDS, (size, tokens), generator=rng).masked_fill(mask == 0, 1)
    target = {"decoder_input_ids": ids.flip(0), "decoder_attention_mask": mask.flip(0)}
    inputs = {
        "text": {"input_ids": ids, "attention_mask": mask},
        "image": {"pixel_values": torch.randn(size, 3, 16, 16, generator=rng).double()},
        "wave": {"input_values": torch.randn(size, 200, generator=rng).double()},
        "sound": {"input_features": torch.randn(size, 8, 20, generator=rng).double()},
    }
    inputs |= {"source, target": inputs["text"] | target, "sound, target": inputs["sound"] | target}
    return Batch(inputs[reads], torch.randint(0, 2, (size,), generator=rng).float())
