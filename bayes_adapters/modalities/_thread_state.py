"""Thread-wide state that a paused module must not leave to others: gradient modes, autocast, Pyro's handlers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from pyro.poutine import runtime


class ThreadState:
    """What the thread looks like to the caller of ``lockstep.run``; :meth:`restored` brings it back during a pause."""

    def __init__(self) -> None:
        accelerator = torch.accelerator.current_accelerator()
        self.devices = {"cpu"} if accelerator is None else {"cpu", accelerator.type}
        self.autocast = self._autocast()
        self.grad, self.inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self.handlers, self.plates = len(runtime._PYRO_STACK), list(runtime._DIM_ALLOCATOR._stack)

    def _autocast(self) -> dict[str, tuple[torch.dtype, bool]]:
        return {d: (torch.get_autocast_dtype(d), torch.is_autocast_enabled(d)) for d in self.devices}

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Within the context the thread is as the caller left it; after it, as the paused module left it."""
        own_handlers, own_plates = runtime._PYRO_STACK[self.handlers :], list(runtime._DIM_ALLOCATOR._stack)
        own_autocast = self._autocast()
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled() != self.inference:
                stack.enter_context(torch.inference_mode(self.inference))
            stack.enter_context(torch.set_grad_enabled(self.grad))
            for device, (dtype, enabled) in self.autocast.items():
                if own_autocast[device] != (dtype, enabled):
                    stack.enter_context(torch.autocast(device, dtype, enabled))
            del runtime._PYRO_STACK[self.handlers :]
            runtime._DIM_ALLOCATOR._stack[:] = self.plates
            try:
                yield
            finally:
                runtime._PYRO_STACK[self.handlers :] = own_handlers
                runtime._DIM_ALLOCATOR._stack[:] = own_plates
