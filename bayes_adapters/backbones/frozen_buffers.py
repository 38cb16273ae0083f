"""Buffers of a frozen backbone that a pass in train mode would move, such as the running means of a batch norm.

A backbone is frozen with all that it holds. ``requires_grad_(False)`` does not stop what a module writes into its own
buffers while it trains: batch norms average their inputs, spectral norms take a step of the power method, quantisers
follow their codes. Saved adapters hold no buffer of the backbone, so a reloaded model would compute something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from bayes_adapters.errors import ConfigError


def with_statistics(backbone: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules of ``backbone`` that own floating-point buffers which its ``state_dict`` holds.

    >>> [type(m).__name__ for m in with_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()))]
    ['BatchNorm1d']
    """
    return tuple(m for m in backbone.modules() if any(b.is_floating_point() for b in _persistent(m).values()))


@contextmanager
def frozen_buffers(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the context ``modules`` are in eval mode; after it each has the mode it had before.

    A module in eval mode uses its statistics and leaves them alone. Its submodules keep their mode, dropout included.

    Args:
        modules: what :func:`with_statistics` returned.

    Raises:
        ConfigError: a buffer was written all the same.
    """
    before = [(module, module.training) for module in modules]
    versions = [(module, {name: (b, _version(b)) for name, b in _persistent(module).items()}) for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
    for module, old in versions:
        for name, now in _persistent(module).items():
            was, version = old.get(name, (None, None))
            if now is not was or _version(now) != version:
                raise ConfigError(
                    f"The frozen backbone's {type(module).__name__} changed its buffer {name!r} in a pass, though it "
                    "was in eval mode: what the adapters were trained on would be lost, for no saved adapter holds it. "
                    "An observer of torch.ao.quantization is the usual cause: call "
                    "backbone.apply(torch.ao.quantization.disable_observer) first, or take this module out."
                )


def _persistent(module: nn.Module) -> dict[str, Tensor]:
    """The module's own buffers that its ``state_dict`` holds."""
    skipped = module._non_persistent_buffers_set
    return {name: b for name, b in module._buffers.items() if b is not None and name not in skipped}


def _version(buffer: Tensor) -> int | None:
    return None if buffer.is_inference() else buffer._version
