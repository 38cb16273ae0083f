"""What one call of a model sees: inputs of the backbone, targets, and the context that conditions the adapters.

Context is passed with every call and never stored on a module, so two calls cannot see each other's audio.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bayes_adapters.data._checks import (
    check_frames,
    check_mapping,
    check_masks,
    check_parts,
    check_rows,
    check_size,
    check_widths,
    not_frames,
)
from bayes_adapters.data.streams import TOKEN_MASK as TOKEN_MASK
from bayes_adapters.data.streams import returned_mask
from bayes_adapters.errors import ConfigError, DataError, near_matches

TargetValues: TypeAlias = Tensor | Mapping[str, Tensor]
"""Targets of one likelihood, or task → targets of several."""


@dataclass(frozen=True)
class Frames:
    """A sequence of context vectors per example, such as the frames of an audio encoder.

    Args:
        values: shape (B, S, d), floating point. Masked positions may hold anything finite.
        mask: shape (B, S), bool, True where a frame is real. A row without any True frame means that this
            example's context is **missing**; guides with a null context define what happens then.

    >>> frames = Frames(torch.tensor([[[1.0], [3.0]], [[5.0], [9.0]]]), torch.tensor([[True, True], [True, False]]))
    >>> frames.mean()
    tensor([[2.],
            [5.]])
    >>> Frames(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool)).present
    tensor([False])
    """

    values: Float[Tensor, "B S d"]
    mask: Bool[Tensor, "B S"]

    def __post_init__(self) -> None:
        check_frames(self.values, self.mask)

    @property
    def present(self) -> Bool[Tensor, " B"]:
        """Shape (B,), True where an example has at least one real frame."""
        return self.mask.any(-1)

    def mean(self) -> Float[Tensor, "B d"]:
        """Shape (B, d), float32: mean over real frames; zero where an example has none."""
        weight = self.mask[..., None].float()
        return (self.values.float() * weight).sum(1) / weight.sum(1).clamp_min(1.0)

    def standardised(self, mean: Float[Tensor, " d"], scale: Float[Tensor, " d"]) -> Frames:
        """Return ``(values − mean) / scale``, in the dtype of the values.

        Args:
            mean: shape (d,), of the training data, see :func:`bayes_adapters.data.frame_statistics`.
            scale: shape (d,), positive.

        Raises:
            DataError: their width is not that of the frames.
        """
        check_widths(mean, scale, self.values.shape[-1])
        mean, scale = mean.to(self.values.device), scale.to(self.values.device)
        return Frames(((self.values.float() - mean) / scale).to(self.values.dtype), self.mask)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Frames:
        """Return the same frames on ``device``; ``non_blocking`` is for frames in pinned memory."""
        return Frames(*(part.to(device, non_blocking=non_blocking) for part in (self.values, self.mask)))

    def pin_memory(self) -> Frames:
        """Return the same frames in page-locked memory of the host."""
        return Frames(self.values.pin_memory(), self.mask.pin_memory())

    def __getitem__(self, rows: slice | Tensor) -> Frames:
        """Return the frames of the examples at ``rows``, a slice or a tensor of shape (n,)."""
        check_rows(rows, "frames")
        return Frames(self.values[rows], self.mask[rows])


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
        targets: shape (B,) (classes: int64; Bernoulli and regression: floating point), (B, K) for several labels or
            numbers per example, (B, T) int64 for tagging, (B, H, W) int64 for masks, -100 where a token or pixel has
            no label; a mapping task → tensor for :class:`bayes_adapters.likelihoods.Tasks`, where -100 or NaN marks an
            example without a label of a task; or None at prediction time.
        context: modality name → :class:`Frames`. A modality that is left out is missing for the whole batch.
        index: shape (B,), int64: each example's number in its data set. Prediction noise is a function of it, so
            results do not depend on how examples are batched. ``None`` means 0 … B-1.

    >>> batch = Batch(
    ...     {"input_ids": torch.tensor([[5, 6, 7], [8, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]])},
    ...     targets=torch.tensor([1.0, 0.0]),
    ...     context={"audio": Frames(torch.randn(2, 4, 3), torch.ones(2, 4, dtype=torch.bool))},
    ... )
    >>> batch.size, batch.ids, batch[:1].size
    (2, tensor([0, 1]), 1)
    >>> batch.masked("audio").context["audio"].present
    tensor([False, False])
    """

    inputs: Mapping[str, Tensor]
    targets: TargetValues | None = None
    context: Mapping[str, Frames] = field(default_factory=dict)
    index: Int[Tensor, " B"] | None = None

    def __post_init__(self) -> None:
        check_mapping("inputs", self.inputs, "argument of the backbone → tensor")
        check_mapping("context", self.context, "modality → Frames")
        for name, frames in self.context.items():
            if not isinstance(frames, Frames):
                raise not_frames(name, frames)
        check_parts(self.inputs, {k: v.values for k, v in self.context.items()}, self.targets, self.index)
        check_masks(self.inputs)

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

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Return the same batch on ``device``; ``non_blocking`` is for a batch in pinned memory."""
        return self._moved(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the same batch in page-locked memory of the host; ``DataLoader(pin_memory=True)`` calls this.

        Raises:
            RuntimeError: torch finds no accelerator.
        """
        return self._moved(lambda part: part.pin_memory())

    def _moved(self, move: Callable[[Any], Any]) -> Batch:
        """Return the batch with every tensor, and every :class:`Frames`, moved."""
        return self._with(
            inputs={k: move(v) for k, v in self.inputs.items()},
            targets=_each(self.targets, move),
            context={k: move(v) for k, v in self.context.items()},
            index=None if self.index is None else move(self.index),
        )

    def __getitem__(self, rows: slice | Tensor) -> Batch:
        """Return the examples at ``rows`` with the index they have in this batch's data set.

        Args:
            rows: a slice, or a tensor of shape (n,): int64 row numbers, or a bool mask of the rows.

        Raises:
            DataError: ``rows`` is one row's number, or something else, or chooses no row.
        """
        check_rows(rows, "batch")
        index = self.ids[rows]
        check_size(len(index))
        return self._with(
            inputs={k: v[rows] for k, v in self.inputs.items()},
            targets=_each(self.targets, lambda value: value[rows]),
            context={k: v[rows] for k, v in self.context.items()},
            index=index,
        )

    def without(self, *modalities: str) -> Batch:
        """Return the batch with these modalities withheld."""
        return self._with(context={k: v for k, v in self.context.items() if k not in modalities})

    def masked(self, *modalities: str) -> Batch:
        """Return the batch as it is for examples that lack these modalities: all of their frames are masked."""
        masked = {m: Frames(self.context[m].values, torch.zeros_like(self.context[m].mask)) for m in modalities}
        return self._with(context={**self.context, **masked})

    def without_targets(self) -> Batch:
        """Return the batch as it is at prediction time."""
        return self._with(targets=None)

    def _with(self, **changes: Any) -> Batch:
        """Return this batch with parts that were made of its own: they need no second check, which waits for a GPU."""
        new = object.__new__(type(self))
        for part in fields(self):
            object.__setattr__(new, part.name, changes.get(part.name, getattr(self, part.name)))
        return new


def _each(targets: TargetValues | None, change: Callable[[Tensor], Tensor]) -> TargetValues | None:
    """Return the targets, or those of each task, changed."""
    if targets is None or isinstance(targets, Tensor):
        return None if targets is None else change(targets)
    return {task: change(values) for task, values in targets.items()}


def find_frames(
    context: Mapping[str, Frames], modality: str, context_dim: int, reader: str, reads: Collection[str] = ()
) -> Frames | None:
    """Return the frames of ``modality``, or None where there is no context at all, or only others that are read.

    Args:
        context: modality → frames.
        modality: the one that is read.
        context_dim: the width d_a its frames must have.
        reader: what reads them, for the errors: ``"guide"`` or ``"model"``.
        reads: all modalities that it reads, where there are several.

    Raises:
        ConfigError: there is context, but none of these modalities, or one whose name may be a misspelled one.
        DataError: the frames are of another width.
    """
    frames = context.get(modality)
    if frames is None:
        given = sorted(context)
        near = _misspelled(sorted(set(given) - set(reads)), modality)
        if len(reads) > 1 and given and (near or not set(reads) & set(given)):
            raise ConfigError(
                f"The {reader} reads the modalities {sorted(reads)}; the batch has {given}.{near} Rename the context. "
                "Where a modality is missing for all examples, the others of them stay in the batch."
            )
        if given and len(reads) < 2:
            raise ConfigError(
                f"The {reader} reads the modality {modality!r}; the batch has {given}.{_misspelled(given, modality)} "
                f"Rename the context, or build the {reader} with modality={given[0]!r}."
            )
        return None
    if frames.values.shape[-1] != context_dim:
        raise DataError(
            f"The context {modality!r} is {frames.values.shape[-1]} wide; the {reader} was built with "
            f"context_dim={context_dim}. Were the frames made by another encoder?"
        )
    return frames


def _misspelled(given: Sequence[str], meant: str) -> str:
    """Return ``" Is 'audoi' meant to be 'audio'?"``, or an empty string where no name is near."""
    near = [name for name in given if near_matches(name, [meant])]
    return f" Is {near[0]!r} meant to be {meant!r}?" if near else ""
