"""The device to work on, what it can hold, and the random generators of those that a module is on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

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


_SINGLE = frozenset({"mps"})
"""Types of devices without float64."""


def float64(value: Tensor) -> Tensor:
    """Return ``value`` in float64: on its own device or, where that has none (Apple's), on the CPU.

    Sums over draws and differences of entropies are taken in float64, for float32 would round them away.

    >>> float64(torch.ones(2))
    tensor([1., 1.], dtype=torch.float64)
    """
    return value.cpu().double() if value.device.type in _SINGLE else value.double()


def fp32(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off where it is on: posteriors and their densities stay float32 under a bf16 backbone."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


@contextmanager
def generators_kept(module: nn.Module) -> Iterator[None]:
    """After the context torch's generators, on the CPU and where ``module`` is, have the state they had before.

    For building what draws initial values that are overwritten at once.
    """
    devices = sorted({p.device.index or 0 for p in module.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        yield
