"""How a tap sees, and replaces, the tensor at its place: a hook beside ``forward``, and what it finds there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bayes_adapters.modalities.taps import Side, Tap


def hooked(module: nn.Module, tap: Tap, through: Callable[[Any], Any]) -> RemovableHandle:
    """Let ``through`` see what is at a tap of ``module`` whenever it is passed, and return what goes on from there."""
    place = module.get_submodule(tap.path)
    if tap.side == Side.INPUT:
        return place.register_forward_pre_hook(_input_hook(through), with_kwargs=True)

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        new = through(output)
        return None if new is output else new

    return place.register_forward_hook(hook, prepend=True)


def _input_hook(through: Callable[[Any], Any]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]] | None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = None if args else next(iter(inspect.signature(module.forward).parameters), None)
        value = args[0] if args else kwargs.get(str(key))
        new = through(value)
        if new is value:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, str(key): new})

    return hook


def tensor_of(value: Any) -> Tensor | None:
    """Return the tensor that a tap holds: ``value`` itself, or the first of a tuple or list; None where it has none."""
    if type(value) in (tuple, list) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def with_tensor(value: Any, new: Tensor) -> Any:
    """Return ``value`` with ``new`` in the place of its tensor: itself where that is the one it has."""
    if new is tensor_of(value):
        return value
    return new if isinstance(value, Tensor) else type(value)((new, *value[1:]))
