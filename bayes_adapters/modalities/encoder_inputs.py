"""Inputs of a model with several encoders: ``<encoder>.<argument>`` in one flat batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from bayes_adapters.data.batch import TOKEN_MASK, Batch
from bayes_adapters.data.rows import fold, require_length
from bayes_adapters.data.streams import returned_mask
from bayes_adapters.errors import ConfigError, DataError, near_matches


@dataclass(frozen=True)
class EncoderInputs:
    """What each encoder of a batch is called with; an encoder that is not in ``calls`` is missing for the whole batch.

    Args:
        calls: encoder → keyword arguments, rows S·B in the order [S, B].
        masks: encoder → shape (rows, T), True where a position is real.
        present: encoder → shape (rows,), True where the example has this modality; encoders left out have it always.
        rows: S·B.
    """

    calls: dict[str, dict[str, Tensor]]
    masks: dict[str, Bool[Tensor, "rows T"]]
    present: dict[str, Bool[Tensor, " rows"]]
    rows: int

    @classmethod
    def split(cls, batch: Batch, encoders: Iterable[str], folds: int) -> EncoderInputs:
        """Sort ``batch.inputs`` by encoder and repeat every row ``folds`` times.

        ``<encoder>.attention_mask`` is passed on and also serves pooling, unless ``<encoder>.token_mask`` (B, T), which
        only serves pooling, is there. ``<encoder>.present`` (B,) marks examples that lack a modality; their inputs may
        hold anything finite. An example whose mask has no real position lacks the modality as well.

        Raises:
            DataError: an input of no encoder, no inputs at all, ``present`` of another shape, or examples that have a
                modality of which there is no input.
        """
        names = list(encoders)
        inputs = cls({}, {}, {}, batch.size * folds)
        for key, value in batch.inputs.items():
            name, _, argument = key.partition(".")
            if name not in names or not argument:
                raise DataError(
                    f"The input {key!r} belongs to no encoder; inputs are named <encoder>.<argument>, for example "
                    f"{names[0]}.input_ids.{near_matches(name, names)} Encoders: {', '.join(names)}."
                )
            folded = fold(value, folds)
            if argument == "present":
                if value.dim() != 1:
                    raise DataError(f"{key} must have shape (B,), one entry an example; got {tuple(value.shape)}.")
                inputs.present[name] = folded.bool()
            elif argument != TOKEN_MASK:
                inputs.calls.setdefault(name, {})[argument] = folded
        for name in names:
            mask = returned_mask(batch.inputs, f"{name}.")
            if mask is not None:
                inputs.masks[name] = fold(mask, folds)
        for name, mask in inputs.masks.items():
            real = mask.any(-1)
            inputs.present[name] = inputs.present[name] & real if name in inputs.present else real
        for name in [name for name, call in inputs.calls.items() if call.keys() == {"attention_mask"}]:
            del inputs.calls[name]
        if not inputs.calls:
            raise DataError(f"The batch has inputs of none of the encoders {names}.")
        for name in inputs.present.keys() - inputs.calls.keys():
            if having := inputs.present[name][: batch.size].nonzero().flatten().tolist():
                raise DataError(
                    f"Rows {having[:8]} have the modality {name!r}, as {name}.present or a mask of it says, and the "
                    f"batch has no input of this encoder, such as {name}.input_ids or {name}.input_values. Add it; "
                    "where the whole batch lacks the modality leave the mark out, or set it to 0."
                )
        return inputs

    def or_null(self, name: str, value: Float[Tensor, "rows d"], null: Float[Tensor, " d"]) -> Float[Tensor, "rows d"]:
        """Return ``value``, with ``null`` in the rows of examples that lack the modality ``name``."""
        return torch.where(self.present[name][:, None], value, null) if name in self.present else value

    def mask_of(self, name: str, stream: Float[Tensor, "rows T d"]) -> Bool[Tensor, "rows T"] | None:
        """Return the mask of ``name``, checked against a stream of hidden states.

        Raises:
            DataError: they differ in length.
        """
        mask = self.masks.get(name)
        if mask is not None:
            require_length(mask, stream.shape[1], f"the encoder {name!r} returns", f"inputs['{name}.{TOKEN_MASK}']")
        return mask


def require_encoders(backbone: nn.Module, least: int, what: str) -> nn.ModuleDict:
    """Return ``backbone`` if it is a dictionary of at least ``least`` modules, no two of them the same one.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(backbone, nn.ModuleDict) or len(backbone) < least:
        held = f" of {len(backbone)} modules" if isinstance(backbone, nn.ModuleDict) else ""
        raise ConfigError(
            f"{what} needs at least {least} encoders: pass backbone=nn.ModuleDict({{'text': ..., 'audio': ...}}); got "
            f"{type(backbone).__name__}{held}."
        )
    for first, second in combinations(backbone, 2):
        if backbone[first] is backbone[second]:
            raise ConfigError(
                f"The encoders {first!r} and {second!r} of {what} are one module; torch lists it under the first name "
                f"only. Load it twice, or copy it: copy.deepcopy(encoder)."
            )
    return backbone
