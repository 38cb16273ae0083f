"""A random language model of printable characters, with which a script runs through in a second."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "[END]"


def tiny_language_model() -> tuple[Any, Any]:
    """Return a Llama of 16 features and one layer, and a tokenizer of single characters."""
    known = {character: i for i, character in enumerate([END, *map(chr, range(32, 127))])}
    raw = Tokenizer(models.WordLevel(known, unk_token=END))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    net = LlamaForCausalLM(LlamaConfig(vocab_size=len(known), eos_token_id=0, bos_token_id=None, **sizes)).eval()
    return net, PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, unk_token=END, pad_token=END)
