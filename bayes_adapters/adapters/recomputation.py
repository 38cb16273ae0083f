"""Gradient checkpointing: a layer that runs again in backward finds the pass it ran in, as it was at that place.

A checkpointed block keeps its input only. In backward it runs once more, on its own: the model's pass is over by then,
and a second one may have begun. What the block saw is therefore noted when it first runs, and is there again whenever
it runs once more::

    draws of weights          the same tensors; nothing is drawn twice
    draws of local latents    recomputed from the recomputed feature and the same noise: torch brings its generator back
    what guides compute once  what was known when the block began, so that the block computes the rest again
    descriptors               those of the pass, without what they were computed from
    Pyro's handlers           those of the pass; whoever records gets a record that nobody reads

so that loss and gradients are those of a run without checkpointing, entry by entry. A loss of this library takes the
Kullback-Leibler term of a local site from where it runs (:class:`bayes_adapters.sites.Summary`), so that nothing holds
the posteriors of all tokens; under Pyro's own losses they stay in memory until backward.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro.poutine import runtime
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.trace_messenger import TraceMessenger
from pyro.poutine.trace_struct import Trace
from torch import nn
from torch.utils.checkpoint import checkpoint

from bayes_adapters.adapters._recomputation_checks import reentrant, require_recomputable
from bayes_adapters.adapters.forward_pass import ForwardPass, current_pass, running

_FUNCTION = "_gradient_checkpointing_func"
"""Hugging Face's attribute of a block, and of what holds blocks, for the function that checkpoints."""


def checkpointing(backbone: nn.Module) -> tuple[nn.Module, ...]:
    """Return the modules of ``backbone`` that Hugging Face's ``gradient_checkpointing_enable`` can reach."""
    return tuple(module for module in backbone.modules() if hasattr(module, "gradient_checkpointing"))


def checkpointed_in(modules: Sequence[Any]) -> list[Any]:
    """Return those of ``modules`` that run again in backward: only in train mode do blocks do so."""
    return [module for module in modules if module.gradient_checkpointing and module.training]


def require_nonreentrant(modules: Sequence[Any], layers: Sequence[Any]) -> bool:
    """Raise :class:`ConfigError` if layers with random parts are checkpointed so that gradients or draws are lost.

    Args:
        modules: what :func:`checkpointing` returned.
        layers: the adapted layers.

    Returns:
        Whether any has a random part; otherwise every kind of checkpointing will do.
    """
    random = any(layer.sites or len(layer.inter) for layer in layers)
    for module in modules if random else ():
        function = vars(module).get(_FUNCTION)
        if module.gradient_checkpointing and function is not None:
            require_recomputable(type(module).__name__, function)
    return random


@contextmanager
def recomputable(modules: Sequence[Any], layers: Sequence[Any]) -> Iterator[None]:
    """Within the context the blocks that are checkpointed come back to the running pass when they run again.

    Hugging Face keeps the function that checkpoints a block in the block's ``_gradient_checkpointing_func``; within the
    context it is one that wraps the block's call, and after it the same as before.

    Args:
        modules: what :func:`checkpointing` returned.
        layers: the adapted layers.

    Raises:
        ConfigError: blocks are checkpointed in a way that loses gradients or draws.
    """
    active = checkpointed_in(modules) if torch.is_grad_enabled() else []
    random = bool(active) and require_nonreentrant(active, layers)
    before = [(m, vars(m)[_FUNCTION]) for m in active if _FUNCTION in vars(m)]
    try:
        for module, function in before:
            setattr(module, _FUNCTION, _in_its_pass(function, random))
        yield
    finally:
        for module, function in before:
            setattr(module, _FUNCTION, function)


def same_pass() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Let a block that you checkpoint by hand find the pass again: a ``context_fn`` for ``torch.utils.checkpoint``.

    Blocks that ``backbone.gradient_checkpointing_enable()`` checkpoints need none.

    >>> from torch.utils.checkpoint import checkpoint
    >>> block, x = nn.Linear(2, 2), torch.ones(1, 2)
    >>> checkpoint(block, x, use_reentrant=False, context_fn=same_pass).shape
    torch.Size([1, 2])
    """
    found = current_pass()
    if found is None:
        return nullcontext(), nullcontext()
    return running(replace(found, checkpointed=True)), Place(found)


def run_again(function: Callable[..., Any], *inputs: Any) -> Any:
    """Return what ``function`` makes of ``inputs``, and keep nothing else for backward: there it runs again."""
    return _in_its_pass(partial(checkpoint, use_reentrant=False), False)(function, *inputs)


def _in_its_pass(checkpointed: Callable[..., Any], random: bool) -> Callable[..., Any]:
    """Return a function as ``checkpointed``, under which what runs again does so at its place in the pass."""

    def run(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        found = current_pass()
        if found is None:
            return checkpointed(block, *args, **kwargs)
        place: Place = Place(found)
        first: AbstractContextManager[Any] | None = running(replace(found, checkpointed=True))
        del found  # the place is to hold nothing that leads to itself

        def placed(*inputs: Any, **named: Any) -> Any:
            nonlocal first
            if first is None:
                with place:
                    return block(*inputs, **named)
            if random and not torch.is_grad_enabled():
                raise reentrant("block", f"by {checkpointed!r}, which is reentrant")
            once, first = first, None
            with once:
                return block(*inputs, **named)

        return checkpointed(placed, *args, **kwargs)

    return run


class Place(AbstractContextManager[None]):
    """One place in a pass, to which one can come back any number of times: a context in which it runs there again.

    It holds nothing that leads from the pass to the place itself, so that a pass without a backward is freed.

    Args:
        forward_pass: the pass that is running.
    """

    def __init__(self, forward_pass: ForwardPass) -> None:
        again: Any = {"memo": forward_pass.memo.copy(), "descriptors": forward_pass.severed, "drawn": set()}
        self._pass = replace(forward_pass, checkpointed=True, **again)
        self._noise = forward_pass.noise.copy()
        self._handlers = [_unread(handler) for handler in runtime._PYRO_STACK]
        self._plates = list(runtime._DIM_ALLOCATOR._stack)
        self._open: list[ExitStack] = []

    def __enter__(self) -> None:
        here = replace(self._pass, memo=self._pass.memo.copy(), drawn=set())
        with ExitStack() as stack:
            stack.enter_context(_lock)
            stack.enter_context(_handled_by(self._handlers, self._plates))
            stack.enter_context(here.noise.rewound(self._noise))
            stack.enter_context(running(here))
            for around in here.again:
                stack.enter_context(around())
            self._open.append(stack.pop_all())

    def __exit__(self, *error: Any) -> None:
        self._open.pop().__exit__(*error)


_lock = threading.RLock()
"""Pyro has one stack of handlers for all threads, and autograd a thread for each device."""


def _unread(handler: Any) -> Any:
    """A recorder that writes elsewhere; every other handler, and a guide, which others know by identity, is itself."""
    if not isinstance(handler, TraceMessenger) or isinstance(handler, GuideMessenger):
        return handler
    twin = copy.copy(handler)
    twin.trace = Trace()
    return twin


@contextmanager
def _handled_by(handlers: Sequence[Any], plates: Sequence[Any]) -> Iterator[None]:
    """Within the context Pyro's handlers are these, and none of them adds to a record that somebody reads."""
    own_handlers, own_plates = list(runtime._PYRO_STACK), list(runtime._DIM_ALLOCATOR._stack)
    records = [(handler, handler.trace) for handler in handlers if isinstance(handler, TraceMessenger)]
    for handler, _ in records:
        handler.trace = Trace()
    runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:] = handlers, plates
    try:
        yield
    finally:
        runtime._PYRO_STACK[:], runtime._DIM_ALLOCATOR._stack[:] = own_handlers, own_plates
        for handler, record in records:
            handler.trace = record
