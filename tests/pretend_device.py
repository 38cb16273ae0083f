"""A device of its own without hardware: its tensors call themselves ``meta``, hold CPU numbers, and mix with no others.

What a GPU would refuse is refused: an operation on a tensor of the device and one of the CPU that has dimensions, a
generator of the CPU, ``numpy()``. Moves by ``to`` and ``copy_``, and indices from the CPU, are allowed as there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from bayes_adapters import devices

NAME = "meta"


class NoFloat64(TypeError):
    """What torch would say of float64 on a device that has none."""


class MixedDevices(RuntimeError):
    """What torch would say of tensors on several devices."""


class _There(Tensor):
    """A tensor on the pretended device; ``here`` holds its numbers."""

    here: Tensor
    is_meta = False  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        place = {"strides": here.stride(), "storage_offset": here.storage_offset()}
        there: _There = Tensor._make_wrapper_subclass(cls, here.size(), dtype=here.dtype, device=NAME, **place)
        there.here = here
        return there

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.here = value.here  # type: ignore[attr-defined]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["here"], None  # where its bytes are, for who reads them

    def tolist(self) -> Any:
        return self.here.tolist()

    def new_tensor(self, data: Any, **options: Any) -> Tensor:
        return _There(self.here.new_tensor(data, **options))

    def numpy(self, **_: Any) -> Any:
        raise MixedDevices("numpy() of a tensor that is not on the CPU")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _here(value: Any) -> Any:
    return value.here if isinstance(value, _There) else value


def _there(value: Any) -> Any:
    return _There(value) if isinstance(value, Tensor) else value


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs))
    there = [leaf for leaf in leaves if isinstance(leaf, _There)]
    here = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, _There) and leaf.dim()]
    asked = None if kwargs.get("device") is None else torch.device(kwargs["device"]).type
    lands_there = bool(there) if asked is None else asked == NAME
    if name not in ("_to_copy", "copy_"):
        indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_") and isinstance(args[0], _There)
        if there and here and not indexed:
            shapes = [[tuple(t.shape) for t in side] for side in (there, here)]
            raise MixedDevices(f"{name}: tensors of shapes {shapes[0]} there and {shapes[1]} on the CPU")
        if lands_there and any(isinstance(leaf, torch.Generator) for leaf in leaves):
            raise MixedDevices(f"{name}: a generator of the CPU draws for another device")
    if asked == NAME:
        kwargs = kwargs | {"device": "cpu"}
    if _SINGLE and lands_there and torch.float64 in [leaf for leaf in leaves if isinstance(leaf, torch.dtype)]:
        raise NoFloat64(f"{name}: this device has no float64")
    found = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if name.endswith("_") and isinstance(found, Tensor):
        return args[0]
    return tree_map(_there, found) if lands_there else found


_SINGLE: list[bool] = []
"""Holds something while the device has no float64."""


@contextmanager
def single_precision() -> Iterator[None]:
    """Within the context the device has no float64, as Apple's has none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "_SINGLE", frozenset({NAME}))
        _SINGLE.append(True)
        try:
            yield
        finally:
            _SINGLE.pop()


@contextmanager
def pretended() -> Iterator[str]:
    """Within the context the device exists; yields its name."""
    tensor, as_tensor = torch.tensor, torch.as_tensor
    autocast, enabled = torch.autocast, torch.is_autocast_enabled

    def real(device: str) -> str:
        return "cpu" if device == NAME else device

    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        place = torch.empty(0).device if device is None else torch.device(device)
        made_here = tensor(data, device="cpu", **options)
        return made_here.to(NAME) if place.type == NAME else made_here

    def seen(data: Any, **options: Any) -> Tensor:
        return as_tensor(data, **options) if isinstance(data, Tensor) else made(data, **options)

    with torch.device("cpu"):
        torch.empty(0)  # torch keeps what makes tensors as it finds it at the first use of a default device
    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(torch, "tensor", made)  # torch writes numbers into it without any operation
        patch.setattr(torch, "as_tensor", seen)
        patch.setattr(torch, "autocast", lambda device, *args, **options: autocast(real(device), *args, **options))
        patch.setattr(torch, "is_autocast_enabled", lambda device="cpu": enabled(real(device)))
        yield NAME
