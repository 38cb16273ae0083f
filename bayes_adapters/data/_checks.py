"""What batches and frames refuse; a batch is checked once, where its parts come together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from bayes_adapters.data.streams import SOURCE_MASK, TARGET_MASK, TARGETS, TOKEN_MASK
from bayes_adapters.errors import ConfigError, DataError, described, near_matches

_MASKS = (SOURCE_MASK, TOKEN_MASK, "present")
_LABELS = ("labels", "label", "label_ids")


def check_frames(values: Tensor, mask: Tensor) -> None:
    """Refuse frames whose values are no (B, S, d), or whose mask does not fit them."""
    for name, value in (("values", values), ("mask", mask)):
        if not isinstance(value, Tensor):
            raise DataError(
                f"Frames' {name} must be a tensor; got {type(value).__module__}.{type(value).__name__}. Convert an "
                "array with torch.as_tensor(array)."
            )
    if values.dim() != 3:
        raise DataError(
            f"Context values must have shape (B, S, d); got {tuple(values.shape)}. "
            "A single recording is values[None]; a pooled vector is values[:, None]."
        )
    if not values.is_floating_point():
        raise DataError(f"Context values must be floating point; got {values.dtype}.")
    if mask.shape != values.shape[:2]:
        raise DataError(
            f"The context mask has shape {tuple(mask.shape)} and the values {tuple(values.shape)}: "
            f"the mask must be (B, S) = {tuple(values.shape[:2])}. Was the mask made before the frames were "
            "down-sampled?"
        )
    if mask.dtype != torch.bool:
        raise DataError(f"The context mask must be bool, True where a frame is real; got {mask.dtype}.")


def check_widths(mean: Tensor, scale: Tensor, width: int) -> None:
    """Refuse statistics that do not fit frames of this width, or a scale that is not positive."""
    if tuple(mean.shape) != (width,) or tuple(scale.shape) != (width,) or not bool((scale > 0).all()):
        raise DataError(
            f"mean and scale must have shape ({width},), as wide as the frames, and scale must be positive; got "
            f"{tuple(mean.shape)} and {tuple(scale.shape)}, scale from {float(scale.min()) if scale.numel() else None}."
        )


def check_mapping(name: str, given: object, form: str) -> None:
    """Refuse what is no dictionary."""
    if not isinstance(given, Mapping):
        raise DataError(f"{name} must be a dictionary, {form}; got a {type(given).__name__}.")


def not_frames(name: str, given: object) -> DataError:
    """Build the error for a context that is no Frames."""
    return DataError(
        f"context[{name!r}] must be Frames(values, mask), values (B, S, d) and a bool mask (B, S); got a "
        f"{type(given).__name__}."
    )


def check_parts(
    inputs: Mapping[str, Tensor],
    context: Mapping[str, Tensor],
    targets: Tensor | Mapping[str, Tensor] | None,
    index: Tensor | None,
) -> None:
    """Refuse parts that are no tensors with one row for each of the same B ≥ 1 examples, and misleading names."""
    if not inputs:
        raise DataError("A batch needs at least one backbone input, for example inputs={'input_ids': ids}.")
    parts = {f"inputs[{k!r}]": v for k, v in inputs.items()} | {f"context[{k!r}]": v for k, v in context.items()}
    if isinstance(targets, Mapping):
        parts |= {f"targets[{k!r}]": v for k, v in targets.items()}
    elif targets is not None:
        parts["targets"] = targets
    if index is not None:
        parts["index"] = index
    for name, value in parts.items():
        _check_rows_first(name, value)
    for name, value in inputs.items():
        if name.rpartition(".")[2] == "input_ids" and value.dim() == 1:
            raise DataError(
                f"inputs[{name!r}] has shape {tuple(value.shape)} and must be (B, T): one text is a batch of one, "
                "ids[None], as a tokenizer returns it for a list of texts with return_tensors='pt'."
            )
    sizes = {name: value.shape[0] for name, value in parts.items()}
    if len(set(sizes.values())) != 1:
        raise DataError(f"Every part of a batch must have the same number of examples; got {sizes}.")
    for name in inputs:
        _check_name(name)
    if isinstance(targets, Mapping) and not targets:
        raise DataError("targets is a dictionary without a task. Pass task → tensor, or None at prediction time.")
    size = next(iter(sizes.values()))
    check_size(size)
    if index is not None and (*index.shape, index.dtype) != (size, torch.int64):
        raise DataError(
            f"index must be int64 of shape (B,) = ({size},), each example's number in its data set; got {index.dtype} "
            f"of shape {tuple(index.shape)}."
        )


def check_size(size: int) -> None:
    """Refuse a batch without examples."""
    if size == 0:
        raise DataError("The batch is empty (0 examples). Was a filter too strict, or a data set exhausted?")


def _check_rows_first(name: str, value: object) -> None:
    if isinstance(value, Tensor) and value.dim() > 0:
        return
    given, fix = "a tensor without dimensions", ""
    if not isinstance(value, Tensor):
        given = described(value)
        fix = " Convert it with torch.as_tensor; a tokenizer returns tensors with return_tensors='pt', padding=True."
    raise DataError(f"{name} must be a tensor whose first dimension counts the examples; it is {given}.{fix}")


def check_masks(inputs: Mapping[str, Tensor]) -> None:
    """Refuse masks of other numbers than 0 and 1, and examples without a real token where there is one encoder."""
    for name, tokens in ((SOURCE_MASK, "input_ids"), (TARGET_MASK, TARGETS[0])):
        mask, ids = inputs.get(name), inputs.get(tokens)
        scores = TOKEN_MASK in inputs and mask is not None and mask.dim() == 4
        if mask is not None and ids is not None and mask.shape != ids.shape and not scores:
            raise DataError(
                f"{name} has shape {tuple(mask.shape)} and {tokens} {tuple(ids.shape)}: the mask says "
                "which tokens are real, so both must be (B, T). Do both come from the same call of the tokenizer? A "
                "mask of attention scores, (B, 1, T, T), needs token_mask (B, T) beside it."
            )
    masks = {key: v for key, v in inputs.items() if key.rpartition(".")[2] in (*_MASKS, TARGET_MASK) and v.dim() < 4}
    binary = {key: (value == value.bool()).all() for key, value in masks.items()}
    real = {key: value.bool().reshape(value.shape[0], -1).any(-1) for key, value in masks.items() if "." not in key}
    if not masks or bool(torch.stack([*binary.values(), *(rows.all() for rows in real.values())]).all()):  # one wait
        return
    for key, fits in binary.items():
        if not bool(fits):
            other = masks[key][masks[key] != masks[key].bool()][0].item()
            raise DataError(
                f"{key} must hold 1 (or True) where something is real, and 0 where it is padding or missing; it has "
                f"{other:g}. Of a mask that is added to attention scores (0 and a large negative number) pass "
                "mask == 0."
            )
    for key, having in real.items():
        if empty := (~having).nonzero().flatten().tolist():
            raise DataError(f"Rows {empty[:8]} of {key} have no real token. Drop these examples or tokenise them.")


def _check_name(name: str) -> None:
    """Refuse a mask's name that is nearly right: backbones take any argument and ignore those that they do not know."""
    encoder, _, argument = name.rpartition(".")
    if name == "present":
        raise DataError(
            "inputs['present'] marks examples that lack a modality, as <encoder>.present of models with several "
            "encoders; what a single backbone reads cannot be missing. Drop these examples."
        )
    if argument in _LABELS:
        raise DataError(
            f"inputs[{name!r}] would be ignored: the likelihood scores targets, and the backbone computes no loss. "
            f"Pass them as targets: Batch(inputs, targets={argument})."
        )
    known = _MASKS if encoder else _MASKS[:2]
    near = near_matches(argument, known, cutoff=0.85)
    if argument not in known and near:
        raise DataError(
            f"inputs[{name!r}] would be ignored by a backbone, and padding or a missing modality would count as real."
            f"{near}"
        )


def check_rows(rows: object, what: str) -> None:
    if isinstance(rows, slice) or (isinstance(rows, Tensor) and rows.dim() == 1):
        return
    number = rows if isinstance(rows, int) else 0
    given = f"the {type(rows).__name__} {rows}" if isinstance(rows, int) else f"a {type(rows).__name__}"
    if isinstance(rows, Tensor):
        given = f"a tensor of shape {tuple(rows.shape)}"
    raise DataError(
        f"Examples are chosen by a slice or by a tensor of shape (n,), row numbers or a bool mask; got {given}. For "
        f"one example take {what}[{number}:{number + 1 or ''}] or {what}[torch.tensor([{number}])]."
    )


def one_modality(name: object) -> str:
    """Return ``name``, given as ``modality=``; raise :class:`ConfigError` unless it names one modality.

    >>> one_modality("audio")
    'audio'
    """
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"modality must be the key of one entry of Batch.context, such as 'audio'; got {name!r}. Where a "
            "guide or a model reads several contexts, context_dim= is modality → width."
        )
    return name
