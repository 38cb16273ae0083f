"""Which mask belongs to which tokens, where a backbone has an encoder and a decoder, each with tokens of its own.

The hidden states that an encoder–decoder returns are its decoder's. Its encoder, and the keys and values that the
decoder reads of the encoder, see the source tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from jaxtyping import Bool
from torch import Tensor

TOKEN_MASK = "token_mask"
"""The input that marks real positions of hidden states and is not the backbone's."""
SOURCE_MASK, TARGET_MASK = "attention_mask", "decoder_attention_mask"
TARGETS = ("decoder_input_ids", "decoder_inputs_embeds")
"""Arguments that the decoder's tokens come in."""
_SOURCE_LAYER = re.compile(
    r"(^|\.)(\w+_)?encoder\.|(^|\.)(EncDecAttention|encoder_attn|cross_?attn|cross_?attention)\.(.*\.)?(k|v|key|value)(_proj)?$"
)
"""Paths of layers that see source tokens, in T5's naming and in the others'."""


def returned_mask(inputs: Mapping[str, Tensor], prefix: str = "") -> Bool[Tensor, "B T"] | None:
    """Return the mask of the hidden states that the backbone returns; None where every position is real.

    Args:
        inputs: those of a batch.
        prefix: ``"<encoder>."`` of a model with several encoders.
    """
    own = TARGET_MASK if _decodes(inputs, prefix) else SOURCE_MASK
    mask = inputs.get(prefix + TOKEN_MASK, inputs.get(prefix + own))
    return None if mask is None else mask.bool()


def mask_at(inputs: Mapping[str, Tensor], layer: str) -> Bool[Tensor, "B T"] | None:
    """Return the mask of the tokens that the adapted layer at the path ``layer`` sees; None where all are real.

    >>> import torch
    >>> inputs = {"attention_mask": torch.tensor([[1, 0]]), "decoder_input_ids": torch.tensor([[0, 7]])}
    >>> mask_at(inputs, "encoder.block.0.layer.0.SelfAttention.q").tolist()
    [[True, False]]
    >>> mask_at(inputs, "decoder.block.0.layer.1.EncDecAttention.k").tolist()
    [[True, False]]
    >>> mask_at(inputs, "decoder.block.0.layer.1.EncDecAttention.q") is None
    True
    """
    if not (_decodes(inputs) and _SOURCE_LAYER.search(layer)):
        return returned_mask(inputs)
    mask = inputs.get(SOURCE_MASK)
    return None if mask is None else mask.bool()


def _decodes(inputs: Mapping[str, Tensor], prefix: str = "") -> bool:
    return any(prefix + name in inputs for name in TARGETS)
