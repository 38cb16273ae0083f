"""What a density on pairs refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, whole_number

_FEWEST = 20


def check_pairs(x: Tensor, a: Tensor, held_x: Tensor, held_a: Tensor, components: int) -> None:
    """Raise unless these are matched pairs, and enough of them; see ``PairDensity.fit``."""
    shapes = [tuple(t.shape) for t in (x, a, held_x, held_a)]
    fits = all(t.dim() == 2 for t in (x, a, held_x, held_a))
    if not fits or shapes[0][0] != shapes[1][0] or shapes[2][0] != shapes[3][0]:
        raise DataError(
            "Matched pairs are two tensors (N, d) and (N, c), row by row, and two of held-out pairs (M, d), (M, c); "
            f"got {shapes}."
        )
    if shapes[0][1] != shapes[2][1] or shapes[1][1] != shapes[3][1]:
        raise DataError(f"Training and held-out features must have the same widths; got {shapes}.")
    if min(shapes[0][0], shapes[2][0]) < _FEWEST:
        raise DataError(
            f"A density on pairs needs at least {_FEWEST} training and {_FEWEST} held-out pairs; got {shapes[0][0]} "
            f"and {shapes[2][0]}."
        )
    if not all(bool(t.isfinite().all()) for t in (x, a, held_x, held_a)):
        raise DataError("Features of pairs hold NaN or infinity. Look at these examples; corrupt ones are the cause.")
    whole_number("components", components)
    most = min(shapes[0][0] - 1, shapes[0][1], shapes[1][1])
    if components > most:
        raise ConfigError(
            f"components must be at most {most}: the smaller width of {shapes[0][1]} and {shapes[1][1]}, and fewer "
            f"than the {shapes[0][0]} pairs; got {components}."
        )


def require_width(x: Tensor, a: Tensor, input_dim: int, context_dim: int) -> None:
    """Raise :class:`DataError` unless these are features of the widths that were fitted, one of each per pair."""
    if x.dim() != 2 or a.dim() != 2 or x.shape[1] != input_dim or a.shape[1] != context_dim or len(x) != len(a):
        raise DataError(
            f"Pairs are features (B, {input_dim}) and (B, {context_dim}); got {tuple(x.shape)} and {tuple(a.shape)}. "
            "Were they made by the encoders of the training pairs?"
        )


def require_fitted(fitted: bool) -> None:
    """Raise :class:`ConfigError` unless the density is fitted."""
    if not fitted:
        raise ConfigError(
            "The density on pairs is not fitted, so it would trust every pair. Make it with PairDensity.fit, or load "
            "its state_dict."
        )


def require_rank(size: Tensor, resolution: float, components: int, name: str) -> None:
    """Raise :class:`ConfigError` unless features vary in as many directions; ``size`` holds their singular values."""
    rank = int((size > resolution * size[:1]).sum())
    if rank < components:
        raise ConfigError(
            f"components={components}, and the {name} vary in {rank} directions only: the others are rounding, which "
            f"the density would magnify. Pass components={max(rank, 1)} or fewer. Are features copied, or constant?"
        )


def require_modality(batches: Sequence[Any], modality: str) -> None:
    """Raise :class:`DataError` unless there is a batch, and every one has frames of ``modality``."""
    if not batches:
        raise DataError("There is no batch to take features from. Pass one batch, or a list of them.")
    for number, batch in enumerate(batches):
        if modality not in batch.context:
            raise DataError(
                f"Batch {number} has no context {modality!r}; it has {sorted(batch.context)}. Pass modality=, or give "
                "the batch frames; where an example has none, their mask is False."
            )
