"""Thread-wide state that a paused module must not leave to others: gradient modes, autocast, hooks, Pyro's handlers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pyro.poutine import runtime

READS_HOOKS = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")
"""Whether torch says which hooks of saved tensors are on; since version 2.8."""


class ThreadState:
    """What the thread looks like to the caller of ``lockstep.run``; :meth:`restored` brings it back during a pause."""

    def __init__(self) -> None:
        accelerator = torch.accelerator.current_accelerator()
        self.devices = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
        self.autocast = self._autocast()
        self.grad, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self.hooks = _hooks()
        self.handlers, self.plates = len(runtime._PYRO_STACK), list(runtime._DIM_ALLOCATOR._stack)

    def _autocast(self) -> dict[str, tuple[torch.dtype, bool]]:
        return {d: (torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in self.devices}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within the context the thread is as the caller left it; after it, as the paused module left it."""
        own_handlers, own_plates = runtime._PYRO_STACK[self.handlers :], list(runtime._DIM_ALLOCATOR._stack)
        own_autocast, own_hooks = self._autocast(), _hooks()
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled() != self.inference:
                stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for device, (dtype, enabled) in self.autocast.items():
                if own_autocast[device] != (dtype, enabled):
                    stack.enter_context(torch.autocast(device, dtype, enabled))
            stack.enter_context(_hooked(self.hooks, own_hooks))
            del runtime._PYRO_STACK[self.handlers :]
            runtime._DIM_ALLOCATOR._stack[:] = self.plates
            try:
                yield
            finally:
                runtime._PYRO_STACK[self.handlers :] = own_handlers
                runtime._DIM_ALLOCATOR._stack[:] = own_plates


def _hooks() -> list[tuple[Any, Any]]:
    """The hooks of saved tensors that are on, (pack, unpack), the outermost first; a checkpointed layer has its own."""
    found = _taken()
    _push(found)
    return found


def _taken() -> list[tuple[Any, Any]]:
    """The same, and take them off."""
    found: list[tuple[Any, Any]] = []
    while READS_HOOKS and (top := torch._C._autograd._top_saved_tensors_default_hooks(False)) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()
        found.insert(0, top)
    return found


def _push(hooks: list[tuple[Any, Any]]) -> None:
    for pack, unpack in hooks:
        torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


@contextmanager
def _hooked(callers: list[tuple[Any, Any]], own: list[tuple[Any, Any]]) -> Iterator[None]:
    """Within the context the caller's hooks are on; after it a module's own."""
    if callers == own:  # nothing to do, and no switching on of hooks that somebody has forbidden
        yield
        return
    _taken()
    _push(callers)
    try:
        yield
    finally:
        _taken()
        _push(own)
