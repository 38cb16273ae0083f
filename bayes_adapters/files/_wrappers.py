"""Modules as they are called without the wrappers of compilers and of parallel training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_INSIDE = {
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "_fsdp_wrapped_module",
    "CheckpointWrapper": "_checkpoint_wrapped_module",
    "OffloadWrapper": "_checkpoint_wrapped_module",
}
"""torch's wrapping classes → the name of what they wrap. Known by name: importing the compiler takes seconds."""


@contextmanager
def unwrapped(root: nn.Module) -> Iterator[nn.Module]:
    """Give ``root`` without wrappers: within the context no module's or parameter's name tells of them.

    ``torch.compile(net)`` calls the weight ``query.weight`` ``_orig_mod.query.weight``. What is saved, loaded,
    fingerprinted or exported must have the names of the plain net. Wrappers inside ``root`` are taken out and put back
    at the end, also after an error; adapters that were installed meanwhile are then inside them.

    >>> net = nn.Sequential(nn.DataParallel(nn.Linear(2, 3)))
    >>> with unwrapped(net) as plain:
    ...     [name for name, _ in plain.named_parameters()]
    ['0.weight', '0.bias']
    >>> [name for name, _ in net.named_parameters()]
    ['0.module.weight', '0.module.bias']
    """
    taken: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        plain = _inside(root)
        for parent in [*plain.modules()]:
            for name, child in parent._modules.items():
                if child is not None and _inside(child) is not child:
                    taken.append((parent, name, child))
                    parent._modules[name] = _inside(child)
        yield plain
    finally:
        for parent, name, child in reversed(taken):
            if parent._modules.get(name) is _inside(child):  # not if the layer itself was adapted meanwhile
                parent._modules[name] = child


def _inside(module: nn.Module) -> nn.Module:
    """Return what is wrapped, however often, or the module itself."""
    while True:
        inside = _INSIDE.get(type(module).__name__)
        inner = module._modules.get(inside) if inside and type(module).__module__.startswith("torch.") else None
        if inner is None:
            return module
        module = inner
