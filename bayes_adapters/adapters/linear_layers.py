"""What counts as a linear layer, and its sizes."""

from __future__ import annotations

from typing import Any

from torch import nn

from bayes_adapters._transformers import made_by_transformers
from bayes_adapters.errors import ConfigError


def is_conv1d(module: nn.Module) -> bool:
    """Whether ``module`` is transformers' Conv1D, whose weight has shape (in_features, out_features)."""
    return made_by_transformers(module, "pytorch_utils", "Conv1D")


def dimensions(module: nn.Module) -> tuple[int, int] | None:
    """Return (in_features, out_features) of a layer that can be adapted, or None for any other module.

    The routers of Llama 4 and Phi-MoE are linear by their class only: they return choices, and are none.
    """
    own_forward = type(module).forward is not nn.Linear.forward
    if isinstance(module, nn.Linear) and own_forward and "Router" in type(module).__name__:
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if is_conv1d(module):
        weight: Any = module.weight
        return weight.shape[0], weight.shape[1]
    return None


def linear_size(module: nn.Module) -> tuple[int, int]:
    """Return (in_features, out_features) of a layer that can be adapted.

    Raises:
        ConfigError: it is no such layer.
    """
    size = dimensions(module)
    if size is None:
        raise ConfigError(f"Cannot adapt a {type(module).__name__}; allowed: torch.nn.Linear, transformers Conv1D.")
    return size
