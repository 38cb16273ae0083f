"""What one call of a model sees: inputs of the backbone, targets, and the context that conditions the adapters.

Context is passed with every call and never stored on a module, so two calls cannot see each other's audio.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayes_adapters.data.streams import SOURCE_MASK, TARGET_MASK, TARGETS, returned_mask
from bayes_adapters.data.streams import TOKEN_MASK as TOKEN_MASK
from bayes_adapters.errors import ConfigError, DataError, described, near_matches


@dataclass(frozen=True)
class Frames:
    """A sequence of context vectors per example, such as the frames of an audio encoder.

    Args:
        values: shape (B, S, d), floating point. Masked positions may hold anything finite.
        mask: shape (B, S), bool, True where a frame is real. A row without any True frame means that this
            example's context is **missing**; guides with a null context define what happens then.
    """

    values: Float[Tensor, "B S d"]
    mask: Bool[Tensor, "B S"]

    def __post_init__(self) -> None:
        for name, value in (("values", self.values), ("mask", self.mask)):
            if not isinstance(value, Tensor):
                raise DataError(
                    f"Frames' {name} must be a tensor; got {type(value).__module__}.{type(value).__name__}. Convert an "
                    "array with torch.as_tensor(array)."
                )
        if self.values.dim() != 3:
            raise DataError(
                f"Context values must have shape (B, S, d); got {tuple(self.values.shape)}. "
                "A single recording is values[None]; a pooled vector is values[:, None]."
            )
        if not self.values.is_floating_point():
            raise DataError(f"Context values must be floating point; got {self.values.dtype}.")
        if self.mask.shape != self.values.shape[:2]:
            raise DataError(
                f"The context mask has shape {tuple(self.mask.shape)} and the values {tuple(self.values.shape)}: "
                f"the mask must be (B, S) = {tuple(self.values.shape[:2])}. Was the mask made before the frames were "
                "down-sampled?"
            )
        if self.mask.dtype != torch.bool:
            raise DataError(f"The context mask must be bool, True where a frame is real; got {self.mask.dtype}.")

    @property
    def present(self) -> Bool[Tensor, " B"]:
        """Shape (B,), True where an example has at least one real frame."""
        return self.mask.any(-1)

    def mean(self) -> Float[Tensor, "B d"]:
        """Shape (B, d), float32: mean over real frames; zero where an example has none."""
        weight = self.mask[..., None].float()
        return (self.values.float() * weight).sum(1) / weight.sum(1).clamp_min(1.0)

    def to(self, device: torch.device | str) -> Frames:
        """Return the same frames on ``device``."""
        return Frames(self.values.to(device), self.mask.to(device))

    def __getitem__(self, rows: slice | Tensor) -> Frames:
        """Return the frames of the examples at ``rows``, a slice or a tensor of shape (n,)."""
        _check_rows(rows, "frames")
        return Frames(self.values[rows], self.mask[rows])


_MASKS = ("attention_mask", TOKEN_MASK, "present")


@dataclass(frozen=True)
class Batch:
    """One mini-batch of B examples.

    Args:
        inputs: keyword arguments of the backbone; every tensor has B as its first dimension. ``attention_mask``
            (B, T), if present, says which tokens are real: padding counts nowhere. Of a backbone that changes the
            length (wav2vec 2.0, Whisper) ``token_mask`` (B, T'), which the backbone does not see, says so for the T'
            positions of its hidden states. Beside ``token_mask`` the ``attention_mask`` may also be one of attention
            scores, (B, 1, T, T), as for several texts packed into one row. An encoder–decoder returns the hidden
            states of ``decoder_input_ids`` (B, T), whose padding ``decoder_attention_mask`` (B, T) marks. Names of
            models with several encoders: see :class:`bayes_adapters.modalities.encoder_inputs.EncoderInputs`.
        targets: shape (B,) (classes: int64; Bernoulli and regression: floating point), (B, T) int64 for tagging, -100
            where a token has no label, or None at prediction time.
        context: modality name → :class:`Frames`. A modality that is left out is missing for the whole batch.
        index: shape (B,), int64: each example's number in its data set. Prediction noise is a function of it, so
            results do not depend on how examples are batched. ``None`` means 0 … B-1.
    """

    inputs: Mapping[str, Tensor]
    targets: Tensor | None = None
    context: Mapping[str, Frames] = field(default_factory=dict)
    index: Int[Tensor, " B"] | None = None

    def __post_init__(self) -> None:
        for name, mapping, form in (
            ("inputs", self.inputs, "argument of the backbone → tensor"),
            ("context", self.context, "modality → Frames"),
        ):
            if not isinstance(mapping, Mapping):
                raise DataError(f"{name} must be a dictionary, {form}; got a {type(mapping).__name__}.")
        for name, frames in self.context.items():
            if not isinstance(frames, Frames):
                raise DataError(
                    f"context[{name!r}] must be Frames(values, mask), values (B, S, d) and a bool mask (B, S); got a "
                    f"{type(frames).__name__}."
                )
        if not self.inputs:
            raise DataError("A batch needs at least one backbone input, for example inputs={'input_ids': ids}.")
        parts = {f"inputs[{k!r}]": v for k, v in self.inputs.items()}
        parts |= {f"context[{k!r}]": v.values for k, v in self.context.items()}
        parts |= {k: v for k, v in (("targets", self.targets), ("index", self.index)) if v is not None}
        for name, value in parts.items():
            if not isinstance(value, Tensor) or value.dim() == 0:
                given, fix = "a tensor without dimensions", ""
                if not isinstance(value, Tensor):
                    given = described(value)
                    fix = (
                        " Convert it with torch.as_tensor; a tokenizer returns tensors with return_tensors='pt', "
                        "padding=True."
                    )
                raise DataError(
                    f"{name} must be a tensor whose first dimension counts the examples; it is {given}.{fix}"
                )
        for name, value in self.inputs.items():
            if name.rpartition(".")[2] == "input_ids" and value.dim() == 1:
                raise DataError(
                    f"inputs[{name!r}] has shape {tuple(value.shape)} and must be (B, T): one text is a batch of one, "
                    "ids[None], as a tokenizer returns it for a list of texts with return_tensors='pt'."
                )
        sizes = {name: value.shape[0] for name, value in parts.items()}
        if len(set(sizes.values())) != 1:
            raise DataError(f"Every part of a batch must have the same number of examples; got {sizes}.")
        for name in self.inputs:
            _check_name(name)
        if self.size == 0:
            raise DataError("The batch is empty (0 examples). Was a filter too strict, or a data set exhausted?")
        if self.index is not None and (*self.index.shape, self.index.dtype) != (self.size, torch.int64):
            raise DataError(
                f"index must be int64 of shape (B,) = ({self.size},), each example's number in its data set; got "
                f"{self.index.dtype} of shape {tuple(self.index.shape)}."
            )
        _check_masks(self.inputs)

    @property
    def size(self) -> int:
        """The number of examples B."""
        return next(iter(self.inputs.values())).shape[0]

    @property
    def token_mask(self) -> Bool[Tensor, "B T"] | None:
        """Shape (B, T), True where a position of the hidden states is real; None where all are (images, say).

        It is ``inputs["token_mask"]``; where there is none, ``inputs["decoder_attention_mask"]`` if a decoder has
        tokens of its own, else ``inputs["attention_mask"]``.
        """
        return returned_mask(self.inputs)

    @property
    def ids(self) -> Int[Tensor, " B"]:
        """Shape (B,): ``index``, or 0 … B-1 when none was given."""
        device = next(iter(self.inputs.values())).device
        return torch.arange(self.size, device=device) if self.index is None else self.index.to(device)

    def to(self, device: torch.device | str) -> Batch:
        """Return the same batch on ``device``."""
        return Batch(
            {k: v.to(device) for k, v in self.inputs.items()},
            None if self.targets is None else self.targets.to(device),
            {k: v.to(device) for k, v in self.context.items()},
            None if self.index is None else self.index.to(device),
        )

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """Return the examples at ``rows`` with the index they have in this batch's data set.

        Args:
            rows: a slice, or a tensor of shape (n,): int64 row numbers, or a bool mask of the rows.

        Raises:
            DataError: ``rows`` is one row's number, or something else, or chooses no row.
        """
        _check_rows(rows, "batch")
        return Batch(
            {k: v[rows] for k, v in self.inputs.items()},
            None if self.targets is None else self.targets[rows],
            {k: v[rows] for k, v in self.context.items()},
            self.ids[rows],
        )

    def without(self, *modalities: str) -> Batch:
        """Return the batch with these modalities withheld."""
        return replace(self, context={k: v for k, v in self.context.items() if k not in modalities})

    def without_targets(self) -> Batch:
        """Return the batch as it is at prediction time."""
        return replace(self, targets=None)


def find_frames(context: Mapping[str, Frames], modality: str, context_dim: int, reader: str) -> Frames | None:
    """Return the frames of ``modality``, or None where there is no context at all.

    Args:
        context: modality → frames.
        modality: the one that is read.
        context_dim: the width d_a its frames must have.
        reader: what reads them, for the errors: ``"guide"`` or ``"model"``.

    Raises:
        ConfigError: there is context, but none of this modality.
        DataError: the frames are of another width.
    """
    frames = context.get(modality)
    if frames is None:
        if context:
            given = sorted(context)
            raise ConfigError(
                f"The {reader} reads the modality {modality!r}; the batch has {given}.{near_matches(modality, given)}"
            )
        return None
    if frames.values.shape[-1] != context_dim:
        raise DataError(
            f"The context {modality!r} is {frames.values.shape[-1]} wide; the {reader} was built with "
            f"context_dim={context_dim}. Were the frames made by another encoder?"
        )
    return frames


def _check_masks(inputs: Mapping[str, Tensor]) -> None:
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
            raise DataError(
                f"{key} must hold 1 (or True) where something is real, and 0 where it is padding or missing; it has "
                "other numbers. Of a mask that is added to attention scores (0 and a large negative number) pass "
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
    known = _MASKS if encoder else _MASKS[:2]
    near = near_matches(argument, known, cutoff=0.85)
    if argument not in known and near:
        raise DataError(
            f"inputs[{name!r}] would be ignored by a backbone, and padding or a missing modality would count as real."
            f"{near}"
        )


def _check_rows(rows: object, what: str) -> None:
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
