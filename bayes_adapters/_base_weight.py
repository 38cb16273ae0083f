"""What an adapted layer shows of its base weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bayes_adapters.errors import ConfigError

_LOOKS = {"__get__", "dim", "element_size", "is_floating_point", "numel", "size", "stride"}


class BaseWeight(Tensor):
    """The dtype and shape of a layer's base weight, or bias, without its numbers.

    T5 asks a block's last linear layer for the dtype. Whoever computes with a weight goes past the layer and its
    adapter: that is refused. (The device ``meta`` alone would not: torch multiplies by such a matrix, and reads memory
    at random.)
    """

    @classmethod
    def of(cls, weight: Tensor) -> BaseWeight:
        """Describe ``weight``."""
        empty = torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        return Tensor._make_subclass(cls, empty)

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
        if getattr(func, "__name__", "") in _LOOKS:
            return super().__torch_function__(func, types, args, kwargs or {})
        raise ConfigError(
            "The backbone computes with the weight of an adapted layer rather than calling the layer, so its adapter "
            "would have no effect (torch.nn.MultiheadAttention and Mamba do). Leave the layer out of targets."
        )
