"""The device to work on."""

from __future__ import annotations

import torch

from bayes_adapters.errors import ConfigError


def pick_device(name: str) -> torch.device:
    """Resolve ``auto``, and refuse a device that is not there.

    >>> pick_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without CUDA asserts
        raise ConfigError(
            f"The device {name!r} cannot be used: {str(error).splitlines()[0]} Take 'cpu', 'cuda' or 'auto'."
        ) from error
