"""Token ids that a backbone has no embedding for, and texts longer than its table of positions.

Torch says of both only that an index is out of range, and on a GPU it leaves the process unusable.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bayes_adapters.errors import DataError

_IDS, _POSITIONS = "input_ids", "position_ids"


def longest_texts(backbone: nn.Module) -> dict[str, int]:
    """Return the key of token ids in a batch → the most tokens a text may have there.

    The key is ``input_ids``, or ``<encoder>.input_ids`` of each encoder in a ``ModuleDict``. Only a table of learned
    positions sets a limit: BERT, RoBERTa and GPT-2 have one, Llama and T5 do not. RoBERTa keeps the first
    ``padding_idx + 1`` rows of its table for itself.
    """
    encoders = {f"{k}.{_IDS}": m for k, m in backbone.items()} if isinstance(backbone, nn.ModuleDict) else {}
    limits = {}
    for key, encoder in (encoders or {_IDS: backbone}).items():
        rows = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
        words = _words(encoder)
        for table in encoder.modules():
            if isinstance(table, nn.Embedding) and table is not words and table.num_embeddings == rows:
                limits[key] = rows if table.padding_idx is None else rows - table.padding_idx - 1
    return limits


def check_token_ids(backbone: nn.Module, inputs: Mapping[str, Tensor], longest: Mapping[str, int]) -> None:
    """Refuse token ids that ``backbone`` cannot embed.

    Args:
        backbone: the encoder, or a ``ModuleDict`` of encoders.
        inputs: those of a batch.
        longest: what :func:`longest_texts` returned.

    Raises:
        DataError: an id outside the vocabulary, or a text longer than the table of positions.
    """
    for key, ids in inputs.items():
        name, dot, argument = key.rpartition(".")
        if argument != _IDS or ids.is_floating_point():
            continue
        encoder = getattr(backbone, name, None) if dot else backbone
        words = _words(encoder)
        if words is not None:
            known = words.num_embeddings
            low, high = torch.stack(ids.aminmax()).tolist()
            if low < 0 or high >= known:
                rows = ((ids < 0) | (ids >= known)).any(-1).nonzero().flatten().tolist()
                raise DataError(
                    f"inputs[{key!r}] holds the token id {low if low < 0 else high} (wrong ids are in rows "
                    f"{rows[:8]}), and {type(encoder).__name__} embeds the ids 0 … {known - 1}. The usual cause is the "
                    "tokenizer of another model: load it by the backbone's own name. After adding tokens, call "
                    "backbone.resize_token_embeddings(len(tokenizer)) before building the model."
                )
        if key in longest and ids.shape[-1] > longest[key] and f"{name}{dot}{_POSITIONS}" not in inputs:
            raise DataError(
                f"inputs[{key!r}] has {ids.shape[-1]} tokens a text and {type(encoder).__name__} has positions for "
                f"{longest[key]}. Cut the texts: tokenizer(..., truncation=True, max_length={longest[key]})."
            )


def _words(encoder: nn.Module | None) -> nn.Embedding | None:
    """The table that token ids are looked up in; None where there is none, or none that can be asked for."""
    try:
        table = encoder.get_input_embeddings()  # type: ignore[union-attr, operator]
    except (AttributeError, NotImplementedError):
        return None
    return table if isinstance(table, nn.Embedding) else None
