"""What batches of texts refuse: tokenizers without padding, texts that are empty or too long."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from bayes_adapters.errors import ConfigError, DataError, described


def require_padding(tokenizer: Any) -> None:
    """Raise :class:`ConfigError` unless the tokenizer has a token for padding."""
    if getattr(tokenizer, "pad_token_id", None) is None:
        raise ConfigError(
            f"{type(tokenizer).__name__} has no pad_token, so texts of different lengths make no batch. Set one: "
            "tokenizer.pad_token = tokenizer.eos_token. Padding is masked, so that it does not matter which."
        )


def require_strings(name: str, texts: Any, count: int | None = None) -> None:
    """Raise :class:`DataError` unless ``texts`` are strings, ``count`` of them where that is given."""
    if isinstance(texts, str) or not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{name} must be a list of strings; got {described(texts)}. One text is [text].")
    if not texts or (count is not None and len(texts) != count):
        raise DataError(f"{name} holds {len(texts)} texts where {count or 'one or more'} are needed.")


def require_words(name: str, text: str, ids: Sequence[int], special: Collection[int]) -> None:
    """Raise :class:`DataError` for a text without tokens, those that a tokenizer puts around each left out."""
    if all(one in special for one in ids):
        raise DataError(
            f"{name} has an empty text, {text!r}: there is no token behind which the model could go on. Drop the "
            "example, or begin with the text's instruction."
        )


def require_fitting(lengths: Sequence[int], longest: int) -> None:
    """Raise :class:`DataError` where a text has more tokens than a model reads."""
    rows = [row for row, length in enumerate(lengths) if length > longest]
    if rows:
        raise DataError(
            f"Texts {rows[:8]} have up to {max(lengths)} tokens and longest={longest}. A text that is cut off would "
            "lose its question or answer: shorten what it quotes, split it, drop it, or raise longest where the model "
            "was trained on longer ones."
        )
