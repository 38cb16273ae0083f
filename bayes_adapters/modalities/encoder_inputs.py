"""Inputs of a model with several encoders: ``<encoder>.<argument>`` in one flat batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayes_adapters.data.batch import TOKEN_MASK, Batch
from bayes_adapters.data.rows import fold, require_length
from bayes_adapters.data.streams import returned_mask
from bayes_adapters.modalities._encoder_checks import by_segment, require_flags, require_inputs, require_own
from bayes_adapters.modalities._encoder_checks import require_encoders as require_encoders

SEGMENT = "segment"
"""The input that says in which segment of time a token lies, and is not the encoder's."""


@dataclass(frozen=True)
class EncoderInputs:
    """What each encoder of a batch is called with; an encoder that is not in ``calls`` is missing for the whole batch.

    Args:
        calls: encoder → keyword arguments, rows S·B in the order [S, B].
        masks: encoder → shape (rows, T), True where a position is real.
        present: encoder → shape (rows,), True where the example has this modality; encoders left out have it always.
        rows: S·B, or S·B·n where n segments of an example are rows of their own.
        segments: encoder → shape (rows, T), int64, the number of each position's segment, −1 where it is in none;
            encoders left out do not say.
    """

    calls: dict[str, dict[str, Tensor]]
    masks: dict[str, Bool[Tensor, "rows T"]]
    present: dict[str, Bool[Tensor, " rows"]]
    rows: int
    segments: dict[str, Int[Tensor, "rows T"]] = field(default_factory=dict)

    @classmethod
    def split(cls, batch: Batch, encoders: Iterable[str], folds: int, each: int | None = None) -> EncoderInputs:
        """Sort ``batch.inputs`` by encoder and repeat every row ``folds`` times.

        ``<encoder>.attention_mask`` is passed on and also serves pooling, unless ``<encoder>.token_mask`` (B, T), which
        only serves pooling, is there. ``<encoder>.present`` (B,) marks examples that lack a modality; their inputs may
        hold anything finite. An example whose mask has no real position lacks the modality as well.
        ``<encoder>.segment`` (B, T) numbers the segments that positions are in, for models with segments.

        Args:
            batch: B examples.
            encoders: their names.
            folds: S.
            each: n, where every input has shape (B, n, …) and the n segments of an example are rows of their own, in
                the order [S, B, n]; ``<encoder>.present`` may then be (B, n) or (B,).

        Raises:
            DataError: an input of no encoder, no inputs at all, ``present`` of another shape, or examples that have a
                modality of which there is no input.
        """
        names = list(encoders)
        given: Mapping[str, Tensor] = batch.inputs
        if each is not None:
            given = {key: by_segment(key, value, each) for key, value in batch.inputs.items()}
        rows = batch.size * (each or 1)
        inputs = cls({}, {}, {}, rows * folds)
        for key, value in given.items():
            name, _, argument = key.partition(".")
            require_own(key, name, argument, names)
            folded = fold(value, folds)
            if argument == "present":
                require_flags(key, value)
                inputs.present[name] = folded.bool()
            elif argument == SEGMENT:
                inputs.segments[name] = folded
            elif argument != TOKEN_MASK:
                inputs.calls.setdefault(name, {})[argument] = folded
        for name in names:
            mask = returned_mask(given, f"{name}.")
            if mask is not None:
                inputs.masks[name] = fold(mask, folds)
        for name, mask in inputs.masks.items():
            real = mask.any(-1)
            inputs.present[name] = inputs.present[name] & real if name in inputs.present else real
        for name in [name for name, call in inputs.calls.items() if call.keys() == {"attention_mask"}]:
            del inputs.calls[name]
        require_inputs(inputs.calls, inputs.present, names, rows)
        return inputs

    def or_null(
        self, name: str, value: Float[Tensor, "rows *T d"], null: Float[Tensor, " d"]
    ) -> Float[Tensor, "rows *T d"]:
        """Return ``value``, with ``null`` in the rows of examples that lack the modality ``name``."""
        if name not in self.present:
            return value
        return torch.where(self.present[name].reshape(-1, *[1] * (value.dim() - 1)), value, null)

    def mask_of(self, name: str, stream: Float[Tensor, "rows T d"]) -> Bool[Tensor, "rows T"] | None:
        """Return the mask of ``name``, checked against a stream of hidden states.

        Raises:
            DataError: they differ in length.
        """
        mask = self.masks.get(name)
        if mask is not None:
            require_length(mask, stream.shape[1], f"the encoder {name!r} returns", f"inputs['{name}.{TOKEN_MASK}']")
        return mask
