"""Token ids that a backbone has no embedding for, and texts longer than its table of positions.

Torch says of both only that an index is out of range, and on a GPU it leaves the process unusable.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from bayes_adapters.backbones._checks import require_known_ids, require_positions
from bayes_adapters.backbones.call_arguments import ABSOLUTE

_IDS, _POSITIONS = "input_ids", "position_ids"


@dataclass(frozen=True)
class Longest:
    """How long a text may be.

    Args:
        tokens: the most tokens that take a position.
        padding: the id that takes none where there is no mask (RoBERTa), or None.
        masked: whether masked tokens take none (RoBERTa, OPT).
    """

    tokens: int
    padding: int | None = None
    masked: bool = False

    def count(self, ids: Int[Tensor, "*B T"], mask: Tensor | None) -> int:
        """Return the positions that the longest text of ``ids`` takes."""
        taken = mask if self.masked and mask is not None and mask.dim() == 2 else None
        if taken is None and self.padding is not None:
            taken = ids != self.padding
        if taken is None or ids.shape[-1] <= self.tokens:  # nothing to look at, and no wait for the device
            return ids.shape[-1]
        return int(taken.bool().sum(-1).max())


def longest_texts(backbone: nn.Module) -> dict[str, Longest]:
    """Return the key of token ids in a batch → how long a text may be there.

    The key is ``input_ids``, or ``<encoder>.input_ids`` of each encoder in a ``ModuleDict``. Only a table of absolute
    positions sets a limit: BERT, RoBERTa, GPT-2 and OPT have one; Llama, T5 and DeBERTa-v3, whose table of relative
    positions may be as large, do not. RoBERTa keeps the first ``padding_idx + 1`` rows of its table for itself.
    """
    encoders = {f"{k}.{_IDS}": m for k, m in backbone.items()} if isinstance(backbone, nn.ModuleDict) else {}
    limits: dict[str, Longest] = {}
    for key, encoder in (encoders or {_IDS: backbone}).items():
        rows = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
        counts = _POSITIONS in inspect.signature(encoder.forward).parameters  # BART gives masked tokens a position
        for path, table in encoder.named_modules():
            if not isinstance(table, nn.Embedding) or ABSOLUTE.search(path) is None:
                continue
            offset = getattr(table, "offset", 0)  # rows that OPT and BART leave unused at the start
            if table.num_embeddings - offset == rows:
                free = rows if table.padding_idx is None else rows - table.padding_idx - 1
                found = Longest(free, table.padding_idx, counts and (bool(offset) or table.padding_idx is not None))
                limits[key] = min(found, limits.get(key, found), key=lambda limit: limit.tokens)
    return limits


def check_token_ids(backbone: nn.Module, inputs: Mapping[str, Tensor], longest: Mapping[str, Longest]) -> None:
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
            require_known_ids(key, ids, encoder, words.num_embeddings)
        limit = longest.get(key)
        if limit is None or f"{name}{dot}{_POSITIONS}" in inputs:
            continue
        require_positions(key, limit.count(ids, inputs.get(f"{name}{dot}attention_mask")), encoder, limit.tokens)


def _words(encoder: nn.Module | None) -> nn.Embedding | None:
    """The table that token ids are looked up in; None where there is none, or none that can be asked for."""
    try:
        table = encoder.get_input_embeddings()  # type: ignore[union-attr, operator]
    except (AttributeError, NotImplementedError):
        return None
    return table if isinstance(table, nn.Embedding) else None
