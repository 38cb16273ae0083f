"""What likelihoods refuse: targets of another shape, type or range."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.conditions import refuse_where
from bayes_adapters.distributions import IGNORED
from bayes_adapters.errors import ConfigError, DataError, described


def require_support(likelihood: str, fn: Any, targets: Tensor) -> None:
    """Refuse targets of another shape than one draw of ``fn`` has, outside its support, NaN or infinite."""
    shape = tuple(fn.batch_shape + fn.event_shape)
    if tuple(targets.shape) != shape:
        raise DataError(
            f"Targets of {likelihood} must have shape {shape}; got {tuple(targets.shape)}.{_column(targets)}"
        )
    fits: Tensor = torch.isfinite(targets)
    with suppress(NotImplementedError):  # a distribution that does not say what its support is
        fits = fits & fn.support.check(targets).reshape(
            *targets.shape[: len(fn.batch_shape)], *[1] * len(fn.event_shape)
        )

    def explain() -> DataError:
        rows = (~fits).reshape(len(targets), -1).any(1).nonzero().flatten()[:5]
        return DataError(
            f"Targets lie outside the support of {likelihood}, {type(fn).__name__}: rows {rows.tolist()} hold "
            f"{targets[rows].tolist()}. Is it the likelihood for this kind of target?"
        )

    refuse_where(~fits, explain)


def _column(targets: Tensor) -> str:
    return " Take targets.squeeze(1)." if targets.dim() == 2 and targets.shape[1] == 1 else ""


def require_class_numbers(targets: Tensor, classes: int) -> None:
    if targets.dim() != 1 or targets.is_floating_point():
        fix = " One-hot rows become class numbers by targets.argmax(1)." if targets.dim() == 2 else ""
        if targets.dim() == 1:
            fix = " Class numbers: targets.long(). Real numbers need the likelihood Gaussian."
        raise DataError(
            f"Class targets must be int64 of shape (B,); got {targets.dtype} of shape {tuple(targets.shape)}."
            f"{_column(targets) or fix}"
        )
    bad = (targets < 0) | (targets >= classes)
    refuse_where(
        bad,
        lambda: DataError(
            f"Targets must be class numbers 0 … {classes - 1}; got {targets[bad][:5].tolist()} at rows "
            f"{bad.nonzero().flatten()[:5].tolist()}. Is num_classes too small, or are labels counted from 1?"
        ),
    )


def require_reals(targets: Tensor) -> None:
    if targets.dim() != 1 or not targets.is_floating_point():
        fix = " Take targets.float(); for class numbers the likelihood is Categorical." if targets.dim() == 1 else ""
        raise DataError(
            f"Targets must be floating point of shape (B,); got {targets.dtype} of shape {tuple(targets.shape)}."
            f"{_column(targets) or fix}"
        )
    bad = ~torch.isfinite(targets)
    refuse_where(
        bad,
        lambda: DataError(
            f"Targets at rows {bad.nonzero().flatten()[:5].tolist()} are NaN or infinite. Drop or repair these "
            "examples."
        ),
    )


def require_probabilities(targets: Tensor) -> None:
    """Refuse targets of a Bernoulli that are no real numbers of shape (B,) in [0, 1]."""
    require_reals(targets)
    _require_in_unit(targets, (targets < 0) | (targets > 1))


def require_labels(targets: Tensor, labels: int) -> None:
    """Refuse targets of several Bernoullis that are not of shape (B, K) in [0, 1] or NaN."""
    require_rows_of_reals(targets, labels)
    _require_in_unit(targets, (targets < 0) | (targets > 1))


def _require_in_unit(targets: Tensor, bad: Tensor) -> None:
    refuse_where(
        bad,
        lambda: DataError(
            f"Bernoulli targets must lie in [0, 1]; got {targets[bad][:5].tolist()}. Are labels coded -1/1 or 1/2?"
        ),
    )


def require_rows_of_reals(targets: Tensor, width: int) -> None:
    """Refuse what is not floating point of shape (B, K), infinite numbers, and rows in which every number is NaN."""
    if targets.dim() != 2 or targets.shape[1] != width or not targets.is_floating_point():
        raise DataError(
            f"Targets must be floating point of shape (B, {width}), NaN where a number is not known; got "
            f"{targets.dtype} of shape {tuple(targets.shape)}. Take targets.float(), one column for each output."
        )
    bad = targets.isinf().any(1) | targets.isnan().all(1)
    refuse_where(
        bad,
        lambda: DataError(
            f"Targets at rows {bad.nonzero().flatten()[:5].tolist()} are infinite, or no number of them is known. Drop "
            "or repair these examples."
        ),
    )


def require_tagged(targets: Tensor, classes: int) -> None:
    """Refuse targets of tokens that are no class numbers of shape (B, T), or −100."""
    if targets.dim() != 2 or targets.is_floating_point():
        raise DataError(
            f"Tagging needs one target per token, int64 of shape (B, T); got {targets.dtype} of shape "
            f"{tuple(targets.shape)}. For one class per example take Categorical."
        )
    bad = (targets.long() != IGNORED) & ((targets < 0) | (targets >= classes))
    refuse_where(
        bad,
        lambda: DataError(
            f"Targets must be class numbers 0 … {classes - 1}, or {IGNORED} where a token has no label; got "
            f"{targets[bad][:5].tolist()} at (row, token) {bad.nonzero()[:5].tolist()}. Is num_classes too small, or "
            "are labels counted from 1?"
        ),
    )


def require_as_many(targets: Tensor, tokens: int) -> None:
    """Refuse targets (B, T) where the model labels another number of tokens."""
    if targets.shape[1] != tokens:
        raise DataError(
            f"targets has {targets.shape[1]} tokens and the model labels {tokens}. There must be one target for each; "
            f"one without a label, such as a class token, has {IGNORED}."
        )


def require_counts(targets: Tensor) -> None:
    """Refuse what is not shape (B,) of whole numbers from 0 on, as integers or floating point."""
    if targets.dim() != 1 or targets.dtype == torch.bool or targets.is_complex():
        raise DataError(
            f"Counts must be whole numbers of shape (B,); got {targets.dtype} of shape {tuple(targets.shape)}."
            f"{_column(targets)}"
        )
    bad = ~((targets >= 0) & (targets == targets.floor()) & torch.isfinite(targets))
    refuse_where(
        bad,
        lambda: DataError(
            f"Counts must be whole numbers from 0 on; got {targets[bad][:5].tolist()} at rows "
            f"{bad.nonzero().flatten()[:5].tolist()}. Rates and durations are real numbers: take Gaussian or "
            "StudentT."
        ),
    )


def require_words(targets: Tensor, vocabulary: int) -> None:
    """Refuse labels of a text that are no token ids of shape (B, T), or −100, and texts without any."""
    if targets.dim() != 2 or targets.is_floating_point() or targets.dtype == torch.bool:
        raise DataError(
            f"NextToken needs labels, int64 of shape (B, T), as long as the tokens that are read; got {targets.dtype} "
            f"of shape {tuple(targets.shape)}. labels = input_ids.clone(), with {IGNORED} at prompt and padding."
        )
    bad = (targets != IGNORED) & ((targets < 0) | (targets >= vocabulary))
    refuse_where(
        bad,
        lambda: DataError(
            f"Labels must be token ids 0 … {vocabulary - 1}, or {IGNORED} where a token is not learnt; got "
            f"{targets[bad][:5].tolist()} at (row, token) {bad.nonzero()[:5].tolist()}. Is vocab_size that of the "
            "output layer, and the tokenizer the model's?"
        ),
    )
    empty = ~(targets != IGNORED).any(1)
    refuse_where(
        empty,
        lambda: DataError(
            f"All labels of rows {empty.nonzero().flatten().tolist()[:8]} are {IGNORED}, so these texts teach nothing. "
            "Was the answer cut off by max_length, or is the mask of the prompt too long? Drop these examples."
        ),
    )


def require_token_logits(outputs: object, size: int) -> None:
    """Refuse outputs that are no logits of tokens over a vocabulary of ``size``."""
    if getattr(outputs, "size", None) != size:
        raise ConfigError(
            f"NextToken({size}) scores logits over its vocabulary, and the head gives {described(outputs)}. Take "
            "head=LanguageModelHead()."
        )


def stands_alone(likelihood: str, why: str) -> ConfigError:
    """Return the error for a use of a likelihood over a whole vocabulary that would keep all of it for each draw."""
    return ConfigError(f"{likelihood} looks at all draws of a text together, some tokens at a time: {why}.")
