"""What a structure of several encoders has outputs for: an example, the tokens of one encoder, or segments of time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayes_adapters.errors import unknown_name, whole_number
from bayes_adapters.modalities.encoder_inputs import EncoderInputs
from bayes_adapters.models._dense_checks import (
    refuse_kind,
    refuse_segments,
    require_dense_inputs,
    require_prefix,
    require_segment_numbers,
    require_separable,
    require_tokens_left,
)


@dataclass(frozen=True)
class TokensOf:
    """One output per token of an encoder.

    Args:
        encoder: its name.
        prefix: how many of its first tokens have no output: class, distillation and register tokens.
    """

    encoder: str
    prefix: int = 0

    def of(self, name: str) -> bool:
        """Whether the features of ``name`` are made here, one for each output."""
        return name == self.encoder

    def require_inputs(self, names: Collection[str], segments: Collection[str]) -> None:
        """Raise :class:`DataError` unless the labelled encoder is among those that a batch has inputs of.

        Args:
            names: encoders with inputs.
            segments: encoders whose tokens are given segments.
        """
        require_dense_inputs(self.encoder, names, segments)

    def features(
        self, name: str, hidden: Float[Tensor, "rows n d"] | None, null: Float[Tensor, " d"], inputs: EncoderInputs
    ) -> Float[Tensor, "rows T d"]:
        """Return the hidden states of the labelled tokens, with ``null`` where an example lacks the encoder."""
        if hidden is None:  # require_inputs() has refused the batch
            return null.expand(inputs.rows, 1, -1)
        inputs.mask_of(name, hidden)  # of the same length, or it refuses
        require_tokens_left(name, hidden.shape[1], self.prefix)
        return inputs.or_null(name, hidden[:, self.prefix :].float(), null)

    def real(self, inputs: EncoderInputs, outputs: int) -> Bool[Tensor, "rows T"] | None:
        """Return which of the ``outputs`` tokens are real; None where all are."""
        mask, present = inputs.masks.get(self.encoder), inputs.present.get(self.encoder)
        if mask is not None:  # a mask's examples without any are absent, so `present` cannot say more
            real = mask[:, self.prefix :]
            return real if present is None else real & present[:, None]
        return None if present is None else present[:, None].expand(-1, outputs)


@dataclass(frozen=True)
class Segments:
    """One output per segment of time.

    Args:
        count: T.
        separate: whether each segment has been a row of its own in the encoders, so that its features are pooled ones.
    """

    count: int
    separate: bool = False

    def of(self, name: str) -> bool:
        """Whether the features of ``name`` are made here."""
        return not self.separate

    def require_inputs(self, names: Collection[str], segments: Collection[str]) -> None:
        """Accept any encoders, and raise :class:`DataError` for segments of tokens where segments are rows."""
        if self.separate:
            refuse_segments(segments, "each segment runs on its own (separate=True)")

    def features(
        self, name: str, hidden: Float[Tensor, "rows n d"] | None, null: Float[Tensor, " d"], inputs: EncoderInputs
    ) -> Float[Tensor, "rows T d"]:
        """Return the mean of the tokens within each segment, with ``null`` in segments that have none."""
        if hidden is None:
            return null.expand(inputs.rows, self.count, -1)
        mask, given = inputs.mask_of(name, hidden), inputs.segments.get(name)
        if given is None:
            means = segment_means(hidden, mask, self.count)
            return inputs.or_null(name, means, null)
        key = f"inputs['{name}.segment']"
        require_segment_numbers(key, given, hidden.shape[1], self.count)
        means, any_of = means_of_numbered(hidden, mask, given, self.count)
        return inputs.or_null(name, torch.where(any_of[..., None], means, null), null)

    def real(self, inputs: EncoderInputs, outputs: int) -> None:
        """Return None: every segment is one, and one without a label has the target −100."""


def segment_means(
    hidden: Float[Tensor, "rows n d"], mask: Bool[Tensor, "rows n"] | None, count: int
) -> Float[Tensor, "rows T d"]:
    """Return the means of real tokens over ``count`` equal segments of each row's time, float32 or wider.

    The k-th of a row's m real tokens lasts from k/m to (k + 1)/m of its time, segment s from s/T to (s + 1)/T. A token
    counts in a segment as much as they overlap::

        mean_s = Σ_k w_sk h_k,   w_sk = max(0, min((k + 1) T, (s + 1) m) − max(k T, s m)) / m

    so that Σ_k w_sk = 1. With m a multiple of T these are plain means of m/T tokens, with m = T the tokens themselves,
    with T = 1 the mean of all. A row without a real token has zeros.

    >>> segment_means(torch.tensor([[[1.0], [2.0], [6.0]]]), None, 2).flatten()  # 1, and half of 2; half of 2, and 6
    tensor([1.3333, 4.6667])
    """
    every = mask if mask is not None else torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    place = (every.cumsum(1) - 1)[:, None]
    many = every.sum(1)[:, None, None]
    segment = torch.arange(count, device=hidden.device)[None, :, None]
    end = torch.minimum((place + 1) * count, (segment + 1) * many)
    overlap = (end - torch.maximum(place * count, segment * many)).clamp_min(0) * every[:, None]
    return _averaged(hidden, every, overlap, many.clamp_min(1))


def means_of_numbered(
    hidden: Float[Tensor, "rows n d"], mask: Bool[Tensor, "rows n"] | None, given: Int[Tensor, "rows n"], count: int
) -> tuple[Float[Tensor, "rows T d"], Bool[Tensor, "rows T"]]:
    """Return the mean of the real tokens whose number is s, for s = 0 … T − 1, and which segments have any.

    >>> means, having = means_of_numbered(torch.tensor([[[1.0], [2.0], [6.0]]]), None, torch.tensor([[0, 0, -1]]), 2)
    >>> means.flatten(), having
    (tensor([1.5000, 0.0000]), tensor([[ True, False]]))
    """
    every = given >= 0 if mask is None else mask & (given >= 0)
    inside = (given[:, None] == torch.arange(count, device=given.device)[None, :, None]) & every[:, None]
    many = inside.sum(-1, keepdim=True)
    return _averaged(hidden, every, inside, many.clamp_min(1)), many[..., 0] > 0


def _averaged(
    hidden: Float[Tensor, "rows n d"], every: Bool[Tensor, "rows n"], weight: Tensor, total: Tensor
) -> Float[Tensor, "rows T d"]:
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    # NaN · 0 is NaN, so padding is left out rather than multiplied.
    return torch.matmul((weight / total).to(wide.dtype), wide.masked_fill(~every[..., None], 0.0))


def joined(parts: Sequence[Tensor]) -> Float[Tensor, "rows *T D"]:
    """Return features, (rows, d) or (rows, T, d), side by side: those of an example stand beside every token of it."""
    tokens = next((part.shape[1] for part in parts if part.dim() == 3), None)
    if tokens is None:
        return torch.cat(list(parts), -1)
    return torch.cat([p if p.dim() == 3 else p[:, None].expand(-1, tokens, -1) for p in parts], -1)


def read_dense(
    dense: str | int | None, prefix_tokens: int, separate: bool, encoders: Collection[str]
) -> TokensOf | Segments | None:
    """Return what ``dense`` says; None is one output per example.

    Raises:
        ConfigError: no such encoder, no segment, a prefix where no tokens are labelled, or ``separate`` without
            segments.
    """
    whole_number("prefix_tokens", prefix_tokens, 0)
    require_prefix(prefix_tokens, dense)
    require_separable(separate, dense)
    if dense is None:
        return None
    if isinstance(dense, str):
        if dense not in encoders:
            raise unknown_name("encoder", dense, encoders)
        return TokensOf(dense, prefix_tokens)
    refuse_kind(dense)
    whole_number("dense", dense)
    return Segments(dense, separate)
