"""Language models: which backbones have an output layer over a vocabulary, and how to ask for few of its logits."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from bayes_adapters._transformers import made_by_transformers
from bayes_adapters.data.streams import TARGETS

KEEP = "logits_to_keep"
"""The argument by which a family computes the logits of some positions only."""


def is_language_model(backbone: nn.Module) -> bool:
    """Whether ``backbone`` is a transformers model that writes text: ``AutoModelForCausalLM``, ``…Seq2SeqLM`` and such.

    A masked language model (``BertForMaskedLM``) is none: its logits say what stands at a token, not what follows it.

    >>> from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
    >>> tiny = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    >>> is_language_model(LlamaForCausalLM(tiny)), is_language_model(LlamaModel(tiny))
    (True, False)
    """
    net: Any = backbone
    if not made_by_transformers(backbone, "modeling_utils", "PreTrainedModel") or not net.can_generate():
        return False
    return output_layer(backbone) is not None


def output_layer(backbone: nn.Module) -> nn.Module | None:
    """Return the layer from hidden states to logits, its adapter around it where it has one; None if there is none."""
    net: Any = backbone
    found: nn.Module | None = net.get_output_embeddings()
    return found


def vocabulary_size(backbone: nn.Module) -> int:
    """Return V, the number of logits of a language model's output layer."""
    layer: Any = output_layer(backbone)
    size = getattr(layer, "out_features", None)
    return size if isinstance(size, int) else int(layer.weight.shape[0])


def has_decoder(backbone: nn.Module) -> bool:
    """Whether ``backbone`` is an encoder–decoder, whose decoder has tokens of its own: T5, BART, Whisper."""
    return TARGETS[0] in inspect.signature(backbone.forward).parameters


def keeps(backbone: nn.Module) -> str:
    """Return how ``backbone`` is told to compute few logits: ``"index"`` of positions, ``"last"`` n ones, or ``""``.

    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> tiny = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    >>> keeps(LlamaForCausalLM(tiny))
    'index'
    """
    argument = inspect.signature(backbone.forward).parameters.get(KEEP)
    if argument is None:
        return ""
    return "index" if "Tensor" in str(argument.annotation) else "last"


def last_place(backbone: nn.Module) -> dict[str, Any]:
    """Return what asks ``backbone`` for the logits of the last place alone; nothing where it cannot be asked.

    As an index where the family takes one: a slice of the hidden states is not contiguous, and beside frozen weights
    torch multiplies such a tensor by a copy of the vocabulary's matrix for every row. The index is a list: a tensor
    would have to be on the device of the last block, where a backbone is spread over several.
    """
    how = keeps(backbone)
    if not how:
        return {}
    return {KEEP: [-1] if how == "index" else 1}
