"""What an adapted layer shows of its base weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from bayes_adapters.errors import ConfigError

_LOOKS = {"__get__", "dim", "element_size", "is_floating_point", "numel", "size", "stride"}


class BaseWeight(Tensor):
    """The dtype, device and shape of a layer's base weight, or bias; its numbers are refused.

    T5 asks a block's last linear layer for the dtype. Whoever computes with a weight goes past the layer and its
    adapter.
    """

    layer: str = ""

    @classmethod
    def of(cls, weight: Tensor, layer: str) -> BaseWeight:
        """Describe ``weight`` of the adapted layer with this path."""
        described = Tensor._make_subclass(cls, weight.detach())
        described.layer = layer
        return described

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer questions of dtype and shape.

        Raises:
            ConfigError: anything else.
        """
        given = [*args, *(kwargs or {}).values()]
        given += [part for value in given if isinstance(value, (list, tuple)) for part in value]  # torch.cat's
        layer = next((value.layer for value in given if isinstance(value, BaseWeight) and value.layer), "")
        if getattr(func, "__name__", "") in _LOOKS:
            seen = super().__torch_function__(func, types, args, kwargs or {})
            if isinstance(seen, BaseWeight):  # weight.T
                seen.layer = layer
            return seen
        raise ConfigError(
            f"The backbone computes with the weight of the adapted layer {layer!r} rather than calling the layer, so "
            "its adapter would have no effect (torch.nn.MultiheadAttention and Mamba do). Leave it out: "
            "targets=Targets(..., exclude=[...])."
        )
