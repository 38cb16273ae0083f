"""Batches of prompts, and of prompts with what is to be written behind them, from strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.data._text_checks import require_fitting, require_padding, require_strings, require_words
from bayes_adapters.data.batch import Batch, TargetValues

IGNORED = -100
"""The label of a token that is read and not learnt."""


def prompts(tokenizer: Any, texts: Sequence[str], targets: TargetValues | None = None, *, longest: int) -> Batch:
    """Return a batch of prompts, padded on the side that the tokenizer pads on, for the head ``AnswerTokens``.

    The tokenizer puts its special tokens around each; a text that a chat template has begun with the beginning-of-text
    token does not get a second one.

    Args:
        tokenizer: of the backbone; it has a token for padding.
        texts: the prompts.
        targets: of the batch.
        longest: the most tokens that the model reads: ``backbone.config.max_position_embeddings``.

    Raises:
        DataError: a prompt is empty, or longer than ``longest``.
        ConfigError: the tokenizer has no token for padding.
    """
    require_padding(tokenizer)
    require_strings("texts", texts)
    ids = [_ids(tokenizer, text, special=True) for text in texts]
    return Batch(_padded(tokenizer, ids, longest), targets)


def completions(
    tokenizer: Any, texts: Sequence[str], written: Sequence[str], *, longest: int, end: bool = True
) -> Batch:
    """Return prompts with what is to be written behind them as targets, for ``NextToken`` and ``LanguageModelHead``.

    Labels are the tokens of ``written``, and −100 at the prompt's and at padding. The two are tokenised apart, so that
    the prompt's tokens are those that the model sees when it writes; the end of text that a tokenizer puts behind
    every text stands behind the completion only.

    Args:
        tokenizer: of the backbone, a causal language model.
        texts: the prompts, one for each example.
        written: what follows each; with the space that stands between.
        longest: the most tokens that the model reads, prompt and completion together.
        end: whether the tokenizer's end of text follows and is learnt, where it has one.

    Raises:
        DataError: as :func:`prompts`; or a completion is empty.
        ConfigError: as :func:`prompts`.
    """
    require_padding(tokenizer)
    require_strings("texts", texts)
    require_strings("written", written, len(texts))
    stop = tokenizer.eos_token_id
    after = [stop] if end and stop is not None else []
    firsts = [_begun(tokenizer, text) for text in texts]
    lasts = [_ids(tokenizer, text, special=False, named="written") + after for text in written]
    inputs = _padded(tokenizer, [a + b for a, b in zip(firsts, lasts, strict=True)], longest)
    labels = [[IGNORED] * len(a) + b for a, b in zip(firsts, lasts, strict=True)]
    return Batch(inputs, _fill(labels, IGNORED, tokenizer.padding_side))


def _begun(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a prompt that goes on: without an end of text that it did not hold itself."""
    ids, own = (_ids(tokenizer, text, special=special) for special in (True, False))
    while ids[-1:] == [tokenizer.eos_token_id] and ids[-len(own) :] != own:
        ids = ids[:-1]
    return ids


def _ids(tokenizer: Any, text: str, *, special: bool, named: str = "texts") -> list[int]:
    ids: list[int] = list(tokenizer(text, add_special_tokens=special)["input_ids"])
    begin = getattr(tokenizer, "bos_token_id", None)
    if special and begin is not None and ids[:2] == [begin, begin] and text.startswith(tokenizer.bos_token):
        ids = ids[1:]  # a chat template has begun the text already
    require_words(named, text, ids, set(tokenizer.all_special_ids) if special else set())
    return ids


def _padded(tokenizer: Any, ids: list[list[int]], longest: int) -> dict[str, Tensor]:
    require_fitting([len(one) for one in ids], longest)
    side = tokenizer.padding_side
    ones = [[1] * len(one) for one in ids]
    return {"input_ids": _fill(ids, tokenizer.pad_token_id, side), "attention_mask": _fill(ones, 0, side)}


def _fill(rows: list[list[int]], value: int, side: str) -> Tensor:
    most = max(len(row) for row in rows)
    pads = [[value] * (most - len(row)) for row in rows]
    return torch.tensor([pad + row if side == "left" else row + pad for row, pad in zip(rows, pads, strict=True)])
