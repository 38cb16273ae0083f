"""The plain LoRA that an adapted layer equals: merging and export ask for it, so no other formula is taken for it."""

from __future__ import annotations

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from bayes_adapters.adapters._lora_checks import require_lora, require_shapes
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.sites import Part


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
    require_shapes(layer, down, up)
    return down, up
