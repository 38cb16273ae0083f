"""A limit on what building an adapter may take, so that a file that says another size is refused before memory is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bayes_adapters.files._adapter_checks import too_much

_SLACK = 4  # times the entries that were saved, for initial values, priors and what is computed on the way
_SMALL = 2**20  # entries that cost nothing
_COMPUTED = 2**26  # entries of a result: a structure may try its encoders on a small input while it is built
_TENSORS = 64  # new tensors for each one that was saved


class Budget(TorchDispatchMode):
    """Within this context no tensor is made that is much larger than what was saved or than the backbone's largest.

    A description may say ``rank: 2000`` where rank 2 was saved, or a network of 10⁹ hidden units. The tensors that it
    implies are asked for one by one while the model is built; the first that cannot be right is refused before it is
    allocated, where its size is an argument, or at once when it was computed from others.

    Args:
        entries: name → number of entries of each saved tensor.
        backbone: its largest parameter may be as large as it is: building may look at one.
        where: the folder, for the message.
    """

    def __init__(self, entries: Mapping[str, int], backbone: nn.Module, where: str) -> None:
        super().__init__()
        saved = sum(entries.values())
        largest = max((p.numel() for p in backbone.parameters()), default=0)
        self._one = _SLACK * max(saved, largest, _SMALL)
        self._all = _TENSORS * max(saved, _SMALL) + self._one
        self._count = _TENSORS * (len(entries) + 256)
        self._where = where

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if not any(isinstance(value, Tensor) for value in args):
            nowhere = torch.device(options.get("device") or "cpu").type == "meta"  # shapes of a head's whole task model
            self._made(0 if nowhere else _asked(func, args))
        found = func(*args, **options)
        for value in found if isinstance(found, list | tuple) else (found,):
            if type(value) is Tensor and value.layout is torch.strided and not value.is_meta:
                entries = value.untyped_storage().nbytes() // max(value.element_size(), 1)
                self._require(entries, max(self._one, _COMPUTED))
        return found

    def _made(self, entries: int) -> None:
        self._require(entries, self._one)
        self._all, self._count = self._all - entries, self._count - 1
        if self._all < 0 or self._count < 0:
            raise too_much(self._where, "more tensors")

    def _require(self, entries: int, most: int) -> None:
        if entries > most:
            raise too_much(self._where, f"a tensor of {entries:,} entries")


def _asked(func: Any, args: Sequence[Any]) -> int:
    """How many entries a function without tensors among its arguments (``empty``, ``zeros``, ``eye``, …) makes."""
    sizes = next((a for a in args if isinstance(a, list | tuple) and all(isinstance(n, int) for n in a)), None)
    if sizes is not None:
        return math.prod(sizes)
    numbers = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    if func.__name__.startswith("eye"):
        return math.prod(numbers[:2]) if len(numbers) > 1 else numbers[0] ** 2
    return max((abs(n) for n in numbers), default=1) if func.__name__.startswith(("arange", "randperm")) else 1
