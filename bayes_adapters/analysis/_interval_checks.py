"""What intervals over seeds and units refuse."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from bayes_adapters.errors import DataError


def checked_differences(differences: Tensor) -> Float[Tensor, "R n"]:
    """Return differences (R, n), float64, on the CPU.

    Raises:
        DataError: another shape, fewer than two seeds or units, or numbers that are not finite.
    """
    d = differences.detach().cpu().double()
    if d.dim() != 2:
        raise DataError(
            f"differences must have shape (R, n), a row per training seed and a column per unit; got {tuple(d.shape)}. "
            "Average the examples of a unit first."
        )
    require_two(d.shape[0], d.shape[1])
    if not bool(d.isfinite().all()):
        bad = (~d.isfinite()).nonzero()[:5].tolist()
        raise DataError(f"differences at (seed, unit) {bad} are NaN or infinite; every seed needs every unit.")
    return d


def require_two(seeds: int, units: int) -> None:
    """Raise :class:`DataError` unless there are at least two seeds and two units."""
    if seeds < 2 or units < 2:
        raise DataError(
            f"An interval over seeds and units needs at least 2 of each; got {seeds} and {units}. With one seed, "
            "paired_bootstrap gives an interval over units that holds the seed fixed."
        )


def require_aligned(values: Sequence[Tensor], groups: int | None, draws: int) -> tuple[int, int]:
    """Return R and N; raise :class:`DataError` unless all tensors have shape (R, N, …), and there are two draws."""
    shapes = {tuple(v.shape[:2]) for v in values}
    size = next(iter(shapes), ())
    if len(shapes) != 1 or len(size) != 2 or draws < 2 or groups not in (None, size[1]):
        raise DataError(
            "pigeonhole needs tensors (R, N, …) of the same seeds and examples in a and b, groups of N labels, and "
            f"draws >= 2; got {sorted(shapes)}, {groups} labels and draws={draws}. Targets are the same for every "
            "seed: targets.expand(R, -1)."
        )
    return size[0], size[1]


def require_defined(values: Tensor, what: str) -> None:
    """Raise :class:`DataError` where a metric is NaN or infinite."""
    if not bool(values.isfinite().all()):
        raise DataError(
            f"The metric is not finite on {what}: {values.flatten()[:8].tolist()}. AUC needs both classes: are all "
            "examples of one class in few units?"
        )


def checked_p_values(p_values: Sequence[float]) -> Float[Tensor, " m"]:
    """Return p-values as float64; raise :class:`DataError` unless they lie in [0, 1]."""
    p = torch.as_tensor(p_values, dtype=torch.float64, device="cpu")
    if p.dim() != 1 or not bool(((p >= 0) & (p <= 1)).all()):
        raise DataError(f"p-values must be numbers from 0 to 1; got {list(p_values)[:8]}.")
    return p


def require_counts(n: int, draws: int) -> None:
    """Raise :class:`DataError` unless there are examples to draw, and draws."""
    if n < 1 or draws < 2:
        raise DataError(f"ece_floor needs n >= 1 examples and draws >= 2; got n={n} and draws={draws}.")
