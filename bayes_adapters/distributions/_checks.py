"""What guides made after training refuse: blocks that do not fit, and curvature that makes no Gaussian."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from bayes_adapters.errors import ConfigError, NonFiniteError


@contextmanager
def positive_definite(owner: object, scale: Tensor) -> Iterator[None]:
    """Turn the failure to factorise ``W Wᵀ + diag(σ²)`` into an error that names its cause.

    Args:
        owner: whose covariance it is.
        scale: σ.

    Raises:
        NonFiniteError: the covariance, in float32, is not positive definite.
    """
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        least, most = (float(value) for value in scale.detach().aminmax())
        raise NonFiniteError(
            f"The covariance of this {type(owner).__name__}, W Wᵀ + diag(σ²), is not positive definite in float32: σ "
            f"goes from {least:.3g} to {most:.3g}, and a σ this small beside W cannot be told from 0. Training let it "
            "vanish: take a checkpoint from before, a smaller learning rate or clip_norm, or a larger kl_weight, which "
            "keeps σ near the prior's."
        ) from error


def require_blocks(blocks: Sequence[Sequence[int]], size: int) -> list[tuple[int, int, int]]:
    """Return blocks (first, last, k); raise :class:`ConfigError` unless they fit into ``size`` entries."""
    found = [tuple(int(number) for number in block) for block in blocks]
    end = 0
    for block in found:
        first, last, count = block if len(block) == 3 else (0, 0, 0)
        if not (end <= first < last <= size and 1 <= count <= last - first):
            raise ConfigError(
                "A block is (first entry, entry after the last, number of directions), one after the other within the "
                f"{size} entries of the model's sites, with 1 direction to one per entry; got {block} after entry "
                f"{end}."
            )
        end = last
    return [(first, last, count) for first, last, count in found]


def require_sides(sides: Sequence[Sequence[int]], size: int) -> list[tuple[int, int, int, int]]:
    """Return matrices (m, n, p, k); raise :class:`ConfigError` unless they fill ``size`` entries."""
    found = [tuple(int(number) for number in side) for side in sides]
    fit = all(len(side) == 4 and 0 <= side[2] <= side[0] and 0 <= side[3] <= side[1] for side in found)
    if not fit or sum(side[0] * side[1] for side in found) != size:
        raise ConfigError(
            "A matrix is (rows, columns, directions along the rows, along the columns), with no more directions than "
            f"rows or columns, and all of them fill the {size} entries of the model's sites; got {found}."
        )
    return [(m, n, p, k) for m, n, p, k in found]


def require_curvature(deviation: Tensor, curvatures: Sequence[Tensor]) -> None:
    """Raise :class:`ConfigError` unless prior and curvature make a positive definite precision."""
    positive = bool(((deviation > 0) & deviation.isfinite()).all())
    worst = [value.min() for value in curvatures if value.numel()]
    finite = all(bool(value.isfinite().all()) for value in curvatures)
    if not positive or not finite or any(bool(value < 0) for value in worst):
        lowest = min((float(value) for value in worst), default=0.0)
        raise ConfigError(
            f"The posterior's precision is not positive definite: the smallest curvature is {lowest:.3g}, which must "
            f"be at least 0 and finite, and the smallest prior deviation {float(deviation.min()):.3g}, which must be "
            "above 0. A Hessian that is not a generalised Gauss-Newton matrix has negative directions; clamp them to 0."
        )


def require_rows(name: str, value: Tensor, rows: int, size: int) -> None:
    """Raise :class:`ConfigError` unless ``value`` has that many rows of ``size`` finite entries."""
    if tuple(value.shape) != (rows, size) or not bool(torch.isfinite(value).all()):
        raise ConfigError(
            f"{name} must be finite and of shape ({rows}, {size}), the entries of all sites per row; got "
            f"{tuple(value.shape)}."
        )


def require_moments(loc: Tensor, variance: Tensor, size: int) -> None:
    """Raise :class:`ConfigError` unless mean and variance have ``size`` finite entries, and no variance is negative."""
    fits = tuple(loc.shape) == tuple(variance.shape) == (size,)
    if not fits or not bool((loc.isfinite() & variance.isfinite() & (variance >= 0)).all()):
        raise ConfigError(
            f"Mean and variance must have the {size} entries of all sites, be finite, and no variance negative; got "
            f"shapes {tuple(loc.shape)} and {tuple(variance.shape)}."
        )
