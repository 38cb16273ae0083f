"""Counting the places where the host would wait for a device: every number of a tensor that Python looks at."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}
"""Operations whose result, or its shape, the host needs: ``bool(x)``, ``float(x)`` and ``x.item()`` are the first."""
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations that need the shape of an index only where it is a bool mask."""


class _Counter(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in _INDEXED and any(m is not None and m.dtype is torch.bool for m in tree_leaves(args[1]))
        if name in _READS or masks:
            self.waits.append(f"{name} at {_place()}")
        return func(*args, **(kwargs or {}))


def _place() -> str:
    """The innermost line of this library, of Pyro or of transformers that asked."""
    for frame in reversed(traceback.extract_stack()):
        parts = frame.filename.rsplit("/site-packages/", 1)
        if "host_waits" not in frame.filename and (len(parts) == 1 or not parts[1].startswith("torch/")):
            return f"{'/'.join(parts[-1].split('/')[-3:])}:{frame.lineno} {frame.line}"
    return "?"


@contextmanager
def counted() -> Iterator[list[str]]:
    """Within the context every wait is noted in the list yielded, with the line that waits."""
    waits: list[str] = []
    tolist = Tensor.tolist

    def noted(self: Tensor) -> Any:
        waits.append(f"tolist at {_place()}")
        return tolist(self)

    with pytest.MonkeyPatch.context() as patch, _Counter(waits):
        patch.setattr(Tensor, "tolist", noted)  # reads the CPU's memory without any operation
        yield waits
