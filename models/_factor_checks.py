"""What structures refuse of factors: directions that a layer has too few of, and names that are none."""

from __future__ import annotations

from torch import nn

from bayes_adapters.backbones.quantised import plain_weight
from bayes_adapters.errors import ConfigError, unknown_name
from bayes_adapters.sites import Part


def require_directions(path: str, rank: int, d_in: int, d_out: int) -> None:
    """Raise :class:`ConfigError` if a layer of this size has fewer orthogonal directions than ranks."""
    if rank > min(d_in, d_out):
        raise ConfigError(
            f"The layer {path!r} has {d_in} inputs and {d_out} outputs, so no {rank} orthogonal directions on both "
            f"sides. Take rank={min(d_in, d_out)} or less, or leave the layer out of targets."
        )


def require_float_weight(path: str, layer: nn.Module) -> None:
    """Raise :class:`ConfigError` unless the layer's weight is a matrix of floating-point numbers."""
    if plain_weight(layer) is None:
        weight = getattr(layer, "weight", None)
        raise ConfigError(
            f"The weight of {path!r} is a {type(weight).__name__} of dtype {getattr(weight, 'dtype', None)}, and its "
            "singular values are needed: take a backbone that is not quantised, or another structure, such as "
            "StochasticCore."
        )


def read_factors(factors: str) -> list[Part]:
    """Return the parts that ``factors`` names; raise :class:`ConfigError` unless it is "AB", "A" or "B"."""
    known = {"AB": [Part.A, Part.B], "A": [Part.A], "B": [Part.B]}
    if factors not in known:
        raise unknown_name("factors", str(factors), list(known))
    return known[factors]
