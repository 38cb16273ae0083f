"""Which adapted layers are no plain LoRA."""

from __future__ import annotations

from torch import Tensor

from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError

_FORMULA = ("__call__", "forward", "update", "learned", "_in_pass", "_times")
"""The members of a layer that make its function."""


def require_shapes(layer: AdaptedLinear, down: Tensor, up: Tensor) -> None:
    """Raise :class:`ConfigError` unless A' and B', which a layer says it equals, have its rank."""
    if len(down) != layer.rank or up.shape[-1] != layer.rank:
        raise ConfigError(
            f"{type(layer).__name__}.as_lora() must return A' (r, d_in) and B' (d_out, r) with r = {layer.rank}; it "
            f"returned shapes {tuple(down.shape)} and {tuple(up.shape)}."
        )


def require_lora(layer: AdaptedLinear) -> None:
    """Raise :class:`ConfigError` unless the layer can say which plain LoRA it equals, by its ``as_lora``."""
    require_formula(layer)
    if len(layer.inter):
        raise ConfigError(
            f"{layer.path!r} has a path from {', '.join(layer.inter)} whose core Φ(x̄) is another one for every input, "
            "so no plain LoRA and no single weight equals it."
        )


def require_formula(layer: AdaptedLinear) -> None:
    """Raise :class:`ConfigError` if the layer's formula is another one than its :meth:`as_lora` speaks of."""
    changed = _changed(layer)
    if changed is not None:
        raise ConfigError(
            f"{layer.path!r} is a {type(layer).__name__} whose {changed} is its own, so it is no plain LoRA "
            "B A x, and nothing says which one it equals. Override as_lora() beside it if there is one; else keep the "
            "adapter (bayes_adapters.save)."
        )


def _changed(layer: AdaptedLinear) -> str | None:
    """The member of the formula that the layer, or a class beyond the one that says :meth:`as_lora`, has replaced."""
    for name in _FORMULA:
        if name in vars(layer):
            return name
    for cls in type(layer).__mro__:
        for name in () if "as_lora" in vars(cls) else _FORMULA:
            if name in vars(cls):
                return name
        if "as_lora" in vars(cls):  # whatever is more basic is in what this class says
            return None
    return None
