"""What guides refuse at construction: options that are out of range, or have no effect."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from bayes_adapters.errors import ConfigError, unknown_name, whole_number


def require_sizes(**sizes: int) -> None:
    """Raise :class:`ConfigError` for the first size that is no whole number of at least 1."""
    for name, value in sizes.items():
        whole_number(name, value)


def check_heads(dim: int, heads: int) -> None:
    """Raise :class:`ConfigError` unless the heads divide the width of the context."""
    require_sizes(dim=dim, heads=heads)
    if dim % heads:
        raise ConfigError(f"heads must divide dim; got heads={heads}, dim={dim}.")


def check_context(context: str, context_dim: int | None, shared: bool, unread: Mapping[str, bool]) -> None:
    """Raise :class:`ConfigError` for an option of an amortised guide that its context does not read.

    Args:
        context: what the posterior is conditioned on beside the layer's feature.
        context_dim: d_a, or None.
        shared: whether layers share key and value projections.
        unread: option that has no effect with this context → whether it was given.
    """
    if (context == "none") != (context_dim is None):
        raise ConfigError(
            f"context={context!r} and context_dim={context_dim} do not fit: with 'none' there are no frames and no "
            "width; every other context needs context_dim, the width of its frames."
        )
    if context_dim is not None:
        require_sizes(context_dim=context_dim)
    if shared and context not in ("global", "cross_attention"):
        raise ConfigError(
            f"kv_sharing='shared' has no effect with context={context!r}; it is for 'global' and 'cross_attention'."
        )
    for option, given in unread.items():
        if given:
            why = "only 'cross_attention' has heads" if option == "heads" else "no context is read"
            raise ConfigError(
                f"{option}= has no effect with context={context!r}: {why}. Leave it out, or take another context."
            )


def scale_interval(init_scale: float | Sequence[float]) -> tuple[float, float]:
    """Return the ends of an interval of standard deviations; one number is both.

    Raises:
        ConfigError: they are not positive, finite and in order.

    >>> scale_interval(0.1), scale_interval([0.1, 0.2])
    ((0.1, 0.1), (0.1, 0.2))
    """
    ends = [init_scale] * 2 if isinstance(init_scale, int | float) else list(init_scale)
    if len(ends) != 2 or not 0 < ends[0] <= ends[1] < math.inf:
        raise ConfigError(
            f"init_scale is a standard deviation and must be positive and finite, or a pair low ≤ high; got "
            f"{init_scale}."
        )
    return ends[0], ends[1]


def hidden_widths(bottleneck: int | Mapping[str, int] | None, sources: Sequence[str]) -> dict[str, int]:
    """Return source encoder → h, of those that a bottleneck is given for.

    Raises:
        ConfigError: an unknown encoder, or a width below 1.
    """
    given = {} if bottleneck is None else bottleneck
    widths = dict(given) if isinstance(given, Mapping) else dict.fromkeys(sources, given)
    for source, hidden in widths.items():
        if source not in sources:
            raise unknown_name("source encoder in bottleneck", source, sources)
        whole_number(f"bottleneck of {source!r}", hidden)
    return widths
