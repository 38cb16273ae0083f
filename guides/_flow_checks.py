"""What a flow refuses at construction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bayes_adapters.errors import ConfigError, positive_number


def require_layers(layers: object) -> None:
    """Raise :class:`ConfigError` unless ``layers`` is a list of at least one bijection."""
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not layers:
        raise ConfigError(
            f"layers is a list of bijections, such as ['coupling', 'spline']; got {layers!r}. Without any the "
            "posterior is that of MeanField."
        )


def require_entries(joins: Sequence[str], size: int) -> None:
    """Raise :class:`ConfigError` if a bijection that joins entries has one entry only."""
    if joins and size < 2:
        raise ConfigError(
            f"{joins[0]!r} conditions entries on each other and the model has {size} in all. Take layers=['spline'], "
            "or a larger rank."
        )


def require_network_memory(joins: Sequence[str], needs: Mapping[str, float], most: float) -> None:
    """Raise :class:`ConfigError` if the networks would take more than ``most`` gigabytes.

    Args:
        joins: the bijections that have networks.
        needs: kind of bijection → numbers of float32 that its network keeps.
        most: the limit, gigabytes.
    """
    positive_number("max_gigabytes", most)
    total = 4e-9 * sum(needs[kind] for kind in joins)
    if total > most:
        each = ", ".join(f"{kind!r} {4e-9 * needs[kind]:.3g}" for kind in dict.fromkeys(joins))
        raise ConfigError(
            f"The networks of this flow take {total:.3g} GB ({each} each), and four times that in training; "
            f"max_gigabytes={most:g}. 'coupling' takes {4e-9 * needs['coupling']:.3g} GB per layer and 'spline' has no "
            "network; or take a smaller rank or hidden=, or the guide LowRank."
        )
