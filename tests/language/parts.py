"""Tiny random language models of several families, a tokenizer, and prompts padded on either side."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from bayes_adapters import Batch

VOCAB = 40
ANSWERS = [4, 9, 2]
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0}


def _decoder(config: Callable[..., Any], model: Callable[..., nn.Module], **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return model(config(**_SIZES, **options)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=16, n_layer=2, n_head=2, n_positions=32, **ends)).eval()


def t5() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_decoder_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(T5Config(vocab_size=VOCAB, **sizes, **_ENDS)).eval()


def bart() -> nn.Module:
    torch.manual_seed(0)
    sides = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    widths = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 32}
    net = BartForConditionalGeneration(BartConfig(vocab_size=VOCAB, **sides, **widths, **_ENDS)).eval()
    net.final_logits_bias.normal_()  # type: ignore[operator]
    return net


llama = partial(_decoder, LlamaConfig, LlamaForCausalLM, num_key_value_heads=1)
granite = partial(_decoder, GraniteConfig, GraniteForCausalLM, logits_scaling=4.0)
cohere = partial(_decoder, CohereConfig, CohereForCausalLM, logit_scale=0.25)
gemma2 = partial(
    _decoder, Gemma2Config, Gemma2ForCausalLM, head_dim=8, num_key_value_heads=1, final_logit_softcapping=0.2
)
DECODERS: dict[str, Callable[[], nn.Module]] = {
    "llama": llama,
    "gpt2": gpt2,
    "granite": granite,
    "cohere": cohere,
    "gemma2": gemma2,
}
ENCODER_DECODERS: dict[str, Callable[[], nn.Module]] = {"t5": t5, "bart": bart}
FAMILIES = DECODERS | ENCODER_DECODERS
TARGETS = {"gpt2": ["c_attn"], "t5": ["q", "v"]}
"""Family → layers to adapt where they are not q_proj and v_proj."""


def targets(family: str) -> list[str]:
    return TARGETS.get(family, ["q_proj", "v_proj"])


def prompts(family: str, side: str = "right", pad: int = 2, seed: int = 3) -> Batch:
    """Three prompts of 6, 4 and 5 tokens, padded to 6 + ``pad``; of encoder–decoders those are the decoder's."""
    rng = torch.Generator().manual_seed(seed)
    texts = [torch.randint(3, VOCAB, (n,), generator=rng) for n in (6, 4, 5)]
    inputs = padded(texts, side, 6 + pad)
    if family in ENCODER_DECODERS:
        source = torch.randint(3, VOCAB, (3, 7), generator=rng)
        mask = torch.ones(3, 7, dtype=torch.long)
        mask[1, 5:] = 0
        return Batch({"input_ids": source, "attention_mask": mask, **{f"decoder_{k}": v for k, v in inputs.items()}})
    return Batch(inputs)


def padded(texts: list[Tensor], side: str, length: int) -> dict[str, Tensor]:
    ids, mask = torch.zeros(len(texts), length, dtype=torch.long), torch.zeros(len(texts), length, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(length - len(text), length)
        ids[row, place], mask[row, place] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def alone(batch: Batch, row: int) -> Batch:
    """One example of right-padded prompts without its padding."""
    one = batch[row : row + 1]
    names = [name for name in one.inputs if name.startswith("decoder_")] or list(one.inputs)
    length = int(one.inputs[names[1]].sum())
    return Batch({k: v[:, :length] if k in names else v for k, v in one.inputs.items()}, index=one.index)


def tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Words and single letters, the letters behind a space as well; what it does not know is ``[UNK]``."""
    words = [
        "[UNK]",
        "[PAD]",
        "[END]",
        "Answer",
        ":",
        "A",
        "B",
        "C",
        "ĠA",
        "ĠB",
        "sky",
        "Ġblue",
        "Ġgr",
        "een",
        "Y",
        "es",
    ]
    raw = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]", continuing_subword_prefix="")
    )
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]", eos_token="[END]", **special)
