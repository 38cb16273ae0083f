"""Run several modules in lock-step: each stops at named places, values are exchanged, all go on.

Each module runs in a greenlet, a call stack of its own in the caller's thread, so modelling code needs no fork, no
replaced ``forward`` and no threads. Hooks stop it at its taps; they exist only while :func:`run` lasts and act only on
the call that :func:`run` made, so one module may run under two names, and other calls of it pass through.

A paused module never shows through to the others: gradient mode, inference mode, autocast, hooks of saved tensors,
Pyro's handlers and plates and context variables that it has set are its own until it goes on. Each module sees a copy
of the caller's context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bayes_adapters.modalities._lockstep_checks import (
    check_replacements,
    check_taps,
    is_checkpointed,
    no_tensor,
    require_ended,
    require_greenlet,
    require_order,
)
from bayes_adapters.modalities._tap_hooks import hooked, tensor_of, with_tensor
from bayes_adapters.modalities._thread_state import ThreadState
from bayes_adapters.modalities.pauses import Pauses as Pauses
from bayes_adapters.modalities.taps import Side as Side
from bayes_adapters.modalities.taps import Tap as Tap

Exchange = Callable[[int, dict[str, Tensor]], Mapping[str, Tensor]]
Within = Callable[[], AbstractContextManager[Any]]


def run(
    modules: Mapping[str, nn.Module],
    calls: Mapping[str, Mapping[str, Any]],
    taps: Mapping[str, Sequence[Tap]],
    exchange: Exchange,
    *,
    pauses: Pauses | None = None,
    within: Mapping[str, Within] | None = None,
) -> dict[str, Any]:
    """Call ``modules[name](**calls[name])`` for every name, stopping at the taps to exchange tensors.

    Formula, for the steps s in increasing order: every module runs until its first tap with a step ≥ s; then
    ``exchange(s, {name: tensor})`` is called once, in the caller's context, with the tensors of the modules that have a
    tap at s, in the order of ``modules``. A module that is not in the returned mapping goes on unchanged. If exchange
    changes nothing, outputs are bit-identical to plain calls; random numbers, though, are drawn in the order of running
    (first module up to its first tap, second module …).

    Args:
        modules: name → module. One module may have several names.
        calls: name → keyword arguments of that module's call.
        taps: name → taps in any order; a name that is left out has none and runs through.
        exchange: see above. A replacement has the shape, dtype and device of what it replaces; gradients flow through
            it. ``{}`` changes nothing. It may call modules and ``pyro.sample``.
        pauses: empty; notes what layers under gradient checkpointing, which need it, find at their taps. Whatever runs
            them again in backward does so within ``pauses.replayed()``.
        within: name → what makes a context in which that module runs, and the others do not.

    Returns:
        Name → what the module's call returned.

    Raises:
        ConfigError: names do not match, a path does not exist, two taps are in the same place or have the same step, a
            tap's layer is checkpointed without ``pauses`` or under torch before 2.8, a tap is passed twice, out of
            order or not at all, holds no tensor, or ``exchange`` returns something unsuitable. An exception of a module
            or of ``exchange`` passes through unchanged, with a note that names the module. In every case the other
            modules are unwound (their ``finally`` blocks run) and all hooks are gone.
        MissingResourceError: greenlet, which the extra ``cola`` brings, is not installed.

    >>> import torch
    >>> nets = {"a": nn.Sequential(nn.Identity(), nn.Flatten(0)), "b": nn.Identity()}
    >>> calls = {"a": {"input": torch.ones(2)}, "b": {"input": torch.zeros(2)}}
    >>> taps = {"a": [Tap(0, "1", "input")], "b": [Tap(0, "", "output")]}
    >>> run(nets, calls, taps, lambda step, x: {"a": x["b"], "b": x["a"]})
    {'a': tensor([0., 0.]), 'b': tensor([1., 1.])}
    """
    check_taps(modules, calls, taps, pauses is not None)
    thread_state, within = ThreadState(), {} if within is None else within
    tasks = {
        name: _Task(name, module, calls[name], taps.get(name, ()), thread_state, within.get(name, nullcontext), pauses)
        for name, module in modules.items()
    }
    try:
        for task in tasks.values():
            task.attach()
        for task in tasks.values():
            task.advance()
        for step in sorted({tap.step for listed in taps.values() for tap in listed}):
            waiting = {name: task for name, task in tasks.items() if task.step == step}
            tensors = {name: task.tensor for name, task in waiting.items()}
            replacements = check_replacements(step, tensors, exchange(step, dict(tensors)))
            for name, task in waiting.items():
                task.advance(replacements.get(name))
        return {name: task.output for name, task in tasks.items()}
    except BaseException as error:
        for task in tasks.values():
            task.stop(error)
        raise
    finally:
        for task in tasks.values():
            task.close()


class _Stop(BaseException):
    """Unwinds a paused module; no ``except Exception`` catches it."""


class _Task:
    """One module's call: where it stands, and how to let it go on."""

    def __init__(
        self,
        name: str,
        module: nn.Module,
        call: Mapping[str, Any],
        taps: Sequence[Tap],
        thread_state: ThreadState,
        within: Within,
        pauses: Pauses | None,
    ) -> None:
        self.name, self.module, self.call, self.thread_state, self.within = name, module, call, thread_state, within
        self.taps = sorted(taps, key=lambda tap: tap.step)
        self.pauses = pauses if any(is_checkpointed(module, tap) for tap in taps) else None
        self.reached = 0
        self.tensor: Any = None
        self.output: Any = None
        self.error: BaseException | None = None
        self.stopping = False
        self.handles: list[RemovableHandle] = []
        self.greenlets = require_greenlet("A run in lock-step")
        self.driver = self.greenlets.getcurrent()
        self.root = self.paused = self.greenlets.greenlet(self._body)
        context = copy_context()
        context.run(_tasks.set, (*_tasks.get(), self))
        self.root.gr_context = context

    @property
    def step(self) -> int | None:
        """The step of the last tap that the module has reached."""
        return self.taps[self.reached - 1].step if self.reached else None

    def attach(self) -> None:
        for tap in self.taps:
            self.handles.append(hooked(self.module, tap, partial(self._through, tap)))

    def advance(self, replacement: Tensor | None = None) -> None:
        """Let the module run to its next tap, or to its end."""
        if replacement is not None:
            self.tensor = replacement
        self.paused.switch()
        if self.error is not None:
            raise self.error

    def stop(self, reason: BaseException) -> None:
        """Unwind the module if it has begun and not ended; what goes wrong meanwhile is noted on ``reason``."""
        self.stopping = True
        if self.root:
            self.paused.switch()
            if self.error is not None and not isinstance(self.error, _Stop):
                reason.add_note(f"While {self.name!r} was being stopped it raised {self.error!r}.")

    def close(self) -> None:
        """Take out the hooks and let go of everything; a cycle through the greenlet would keep activations alive."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        del self.root, self.paused, self.driver, self.tensor, self.output, self.error, self.call

    def _body(self) -> None:
        try:
            with self.within():
                self.output = self.module(**self.call)
            require_ended(self.name, self.taps[self.reached :])
        except BaseException as error:  # noqa: BLE001  (the driver raises it again)
            if not isinstance(error, _Stop):
                error.add_note(f"Raised while {self.name!r} ran in lock-step.")
            self.error = error

    def _through(self, tap: Tap, value: Any) -> Any:
        """Hand over the tensor in ``value``; return ``value`` itself, or a copy of it with the replacement."""
        if self not in _tasks.get():
            return value
        if self.stopping:
            raise _Stop
        require_order(self.name, self.taps, self.taps.index(tap), self.reached)
        tensor = tensor_of(value)
        if tensor is None:
            raise no_tensor(self.name, tap, value)
        new = self._pause(tensor)
        if self.pauses is not None:
            self.pauses.note(self.module, tap, tensor, None if new is tensor else new)
        return with_tensor(value, new)

    def _pause(self, tensor: Tensor) -> Tensor:
        self.reached += 1
        # With a run inside a run, the greenlet that is here may be one that this module's own code has started.
        self.tensor, self.paused = tensor, self.greenlets.getcurrent()
        with self.thread_state.restored():
            self.driver.switch()
        if self.stopping:
            raise _Stop
        return self.tensor


_tasks: ContextVar[tuple[_Task, ...]] = ContextVar("bayes_adapters_lockstep_tasks", default=())
"""The tasks to which the running code belongs, outermost first."""
