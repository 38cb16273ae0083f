"""What a guide of Kronecker products refuses."""

from __future__ import annotations

from collections.abc import Sequence

from bayes_adapters.errors import ConfigError


def require_pairs(pairs: Sequence[tuple[int, ...]], shapes: Sequence[tuple[int, int]]) -> None:
    """Raise :class:`ConfigError` unless there is a pair of numbers of directions for every matrix."""
    if len(pairs) != len(shapes) or any(len(pair) != 2 for pair in pairs):
        raise ConfigError(
            f"kept has (directions along rows, along columns) for each of the {len(shapes)} matrices {list(shapes)} of "
            f"the model, in this order; got {list(pairs)}. Leave it out for a guide without curvature."
        )
