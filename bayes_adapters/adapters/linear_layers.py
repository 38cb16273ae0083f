"""What counts as a linear layer, and its sizes."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from bayes_adapters.errors import ConfigError


def dimensions(module: nn.Module) -> tuple[int, int] | None:
    """Return (in_features, out_features) of a layer that can be adapted, or None for any other module.

    The routers of Llama 4 and Phi-MoE are linear by their class only: they return choices, and are none.
    """
    own_forward = type(module).forward is not nn.Linear.forward
    if isinstance(module, nn.Linear) and own_forward and "Router" in type(module).__name__:
        return None
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
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
