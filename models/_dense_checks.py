"""What is refused of outputs per token or per segment of several encoders."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor

from bayes_adapters.conditions import refuse_where
from bayes_adapters.errors import ConfigError, DataError, described
from bayes_adapters.likelihoods import Likelihood


def refuse_kind(dense: object) -> None:
    """Raise :class:`ConfigError` for what is neither an encoder's name nor a number of segments."""
    if isinstance(dense, bool) or not isinstance(dense, int):
        raise ConfigError(
            "dense must be an encoder's name, whose tokens are labelled, or a whole number of segments; got "
            f"{described(dense)}."
        )


def require_prefix(prefix_tokens: int, dense: Any) -> None:
    """Raise :class:`ConfigError` for a prefix where no tokens are labelled."""
    if prefix_tokens and not isinstance(dense, str):
        raise ConfigError(
            f"prefix_tokens={prefix_tokens} leaves out the first tokens of a labelled encoder, and dense={dense!r} "
            "names none. Where segments are labelled, mark class tokens as 0 in <encoder>.token_mask, or as -1 in "
            "<encoder>.segment."
        )


def require_separable(separate: bool, dense: Any) -> None:
    """Raise :class:`ConfigError` where segments are to run on their own and there are none."""
    if separate and not isinstance(dense, int):
        raise ConfigError(
            f"separate=True runs each segment of an example on its own, and dense={dense!r} is no number of segments. "
            "Take dense=10 for ten, or leave separate out."
        )


def require_dense_effect(model: str, dense: Any, likelihood: Likelihood) -> None:
    """Raise :class:`ConfigError` where outputs per token or segment are asked for and targets are per example."""
    if dense is not None and not likelihood.per_token:
        raise ConfigError(
            f"dense={dense!r} gives a {model} one output per token or segment, and {type(likelihood).__name__} has one "
            "target per example. Leave dense out, or take Tagging, alone or in Tasks."
        )


def require_dense_inputs(encoder: str, names: Collection[str], segments: Collection[str]) -> None:
    """Raise :class:`DataError` unless a batch has inputs of the encoder whose tokens are labelled, and no segments."""
    if encoder not in names:
        raise DataError(
            f"The tokens of {encoder!r} are labelled (dense={encoder!r}), and the batch has no input of this encoder, "
            f"so there is no telling how many. Pass any input of the right shape, and {encoder}.present = 0 for all "
            "examples."
        )
    refuse_segments(segments, f"dense={encoder!r} labels tokens")


def refuse_segments(segments: Collection[str], why: str) -> None:
    """Raise :class:`DataError` where a batch numbers segments that nothing reads."""
    if segments:
        name = next(iter(segments))
        raise DataError(
            f"inputs['{name}.segment'] says in which segment a token lies, and {why}. Leave it out, or build the model "
            "with dense=, the number of segments."
        )


def require_segment_numbers(key: str, given: Tensor, tokens: int, count: int) -> None:
    """Raise :class:`DataError` unless each of the ``tokens`` has a segment's number, 0 to ``count`` − 1, or −1."""
    if given.shape[1:] != (tokens,):
        raise DataError(
            f"{key} has shape {tuple(given.shape)}, and the encoder returns {tokens} positions per example, which each "
            f"have a segment's number. If it changes the length (Whisper halves it), number what it returns: shape (B, "
            f"{tokens}), −1 where a position is in no segment."
        )
    if given.is_floating_point() or given.is_complex():
        raise DataError(f"{key} must hold whole numbers, the segment of each token; got {given.dtype}.")
    refuse_where(
        (given < -1) | (given >= count),
        lambda: DataError(
            f"{key} must lie in 0 … {count - 1}, since the model has {count} segments, or be -1 where a token is in "
            f"none; got {int(given.min())} … {int(given.max())}."
        ),
    )


def require_tokens_left(name: str, tokens: int, prefix: int) -> None:
    """Raise :class:`ConfigError` where all tokens are left out."""
    if tokens <= prefix:
        raise ConfigError(
            f"prefix_tokens={prefix} leaves none of the {tokens} tokens that {name!r} returns. A ViT has 1 token that "
            "is no patch, DeiT 2, DINOv2 with registers 5, Swin none."
        )
