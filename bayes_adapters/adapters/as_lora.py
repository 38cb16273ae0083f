"""The plain LoRA that an adapted layer equals: merging and export ask for it, so no other formula is taken for it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError
from bayes_adapters.sites import Part

_FORMULA = ("__call__", "forward", "update", "learned", "_in_pass", "_times")
"""The members of a layer that make its function."""


def as_lora(
    layer: AdaptedLinear, values: Mapping[Part, Tensor] | None = None
) -> tuple[Float[Tensor, "r d_in"], Float[Tensor, "d_out r"]]:
    """Return A' and B' with ``layer(x) = base_layer(x) + scaling · B' A' x``.

    Args:
        layer: at rank 0 its factors are empty.
        values: part → value, for the random ones; None means that nothing is random.

    Raises:
        ConfigError: the layer is of a subclass that has another formula and does not say which LoRA that is, or says
            it in other shapes; or the layer reads other modalities.

    >>> from torch import nn
    >>> down, up = as_lora(AdaptedLinear(nn.Linear(3, 4), rank=2, alpha=2.0))
    >>> tuple(down.shape), tuple(up.shape)
    ((2, 3), (4, 2))
    """
    require_lora(layer)
    down, up = layer.as_lora(values or {})
    if len(down) != layer.rank or up.shape[-1] != layer.rank:
        raise ConfigError(
            f"{type(layer).__name__}.as_lora() must return A' (r, d_in) and B' (d_out, r) with r = {layer.rank}; it "
            f"returned shapes {tuple(down.shape)} and {tuple(up.shape)}."
        )
    return down, up


def require_lora(layer: AdaptedLinear) -> None:
    """Raise :class:`ConfigError` unless the layer can say which plain LoRA it equals; see :func:`as_lora`."""
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
