"""The two frozen encoders, and a batch as they take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bayes_adapters import Frames
from bayes_adapters.backbones import text_backbone
from bayes_adapters.data.boxes import from_corners
from examples.grounding.data import Grounding
from examples.grounding.pretrain import vision_encoder
from examples.grounding.vision import VisionSettings


def encoders(settings: VisionSettings | None = None) -> tuple[dict[str, nn.Module], Any]:
    """Return ``{"vision": transformer, "text": MiniLM}``, frozen and in eval mode, and the text's tokenizer.

    Six layers each: widths 128 and 384, 65 tokens per picture (a class token and 8 x 8 patches of 16 pixels), and the
    words' tokens.

    Args:
        settings: of the transformer and its pre-training; it is trained where the cache has none of these settings.

    Raises:
        MissingResourceError: something is neither here nor reachable.
    """
    text, tokenizer = text_backbone()
    return {"vision": vision_encoder(settings), "text": text.requires_grad_(False)}, tokenizer


def inputs(data: Grounding, rows: Int[Tensor, " B"], tokenizer: Any) -> dict[str, Tensor]:
    """Return the inputs of a model with the encoders ``vision`` and ``text`` for the expressions at ``rows``.

    Args:
        data: any split.
        rows: shape (B,), int64.
        tokenizer: the text encoder's.

    Returns:
        ``vision.pixel_values`` (B, 3, S, S), float32; ``text.input_ids`` and ``text.attention_mask`` (B, T), int64.
    """
    tokens = tokenizer([str(data.expressions[row]) for row in rows.tolist()], return_tensors="pt", padding=True)
    named = {f"text.{name}": tokens[name] for name in ("input_ids", "attention_mask")}
    return {"vision.pixel_values": data.pixels(rows), **named}


def targets(data: Grounding, rows: Int[Tensor, " B"]) -> dict[str, Tensor]:
    """Return targets as the library takes them: ``box`` (B, 4), float32, (cx, cy, w, h), and ``mask`` (B, S, S), int64.

    See :mod:`bayes_adapters.data.boxes` and :class:`bayes_adapters.likelihoods.Masks`.
    """
    return {"box": from_corners(data.boxes[rows]), "mask": data.masks(rows).long()}


@torch.no_grad()
def text_frames(texts: Sequence[str], backbone: nn.Module, tokenizer: Any, batch_size: int = 64) -> Frames:
    """Return the frozen token states of texts, each different text encoded once.

    Args:
        texts: B of them.
        backbone: as :func:`bayes_adapters.backbones.text_backbone` returns it.
        tokenizer: beside it.
        batch_size: texts encoded at once.

    Returns:
        Values (B, T, d), float32, zero where masked: all tokens of the longest text, the special ones too.
    """
    different = list(dict.fromkeys(texts))
    states = {}
    for first in range(0, len(different), batch_size):
        some = different[first : first + batch_size]
        tokens = tokenizer(some, return_tensors="pt", padding=True)
        hidden = backbone(**tokens).last_hidden_state
        real = tokens["attention_mask"].bool()
        states.update({text: row[mask] for text, row, mask in zip(some, hidden, real, strict=True)})
    rows = [states[text] for text in texts]
    values = nn.utils.rnn.pad_sequence(rows, batch_first=True).float()
    return Frames(values, torch.arange(values.shape[1]) < torch.tensor([len(row) for row in rows])[:, None])
