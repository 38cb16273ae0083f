"""One pass at a time: Pyro has one stack of handlers for all threads of a process, and modules have one mode."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pyro.poutine import runtime


class _Turn:
    """Who runs: the lock, the thread that holds it, and Pyro's stack when that thread took it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.holder: int | None = None
        self.depth = 0
        self.handlers = 0
        self.plates: list[str | None] = []


_turn = _Turn()


@contextmanager
def exclusive() -> Iterator[None]:
    """Within the context no other thread predicts or trains; a thread that holds the lock may take it again.

    >>> with exclusive(), exclusive():
    ...     pass
    """
    turn = _turn  # a process that is forked meanwhile has another one
    with turn.lock:
        if turn.depth == 0:
            turn.holder = threading.get_ident()
            turn.handlers, turn.plates = len(runtime._PYRO_STACK), list(runtime._DIM_ALLOCATOR._stack)
        turn.depth += 1
        try:
            yield
        finally:
            turn.depth -= 1


def _after_fork() -> None:
    """Give a forked process a lock of its own.

    Only the thread that forks lives on. Where another held the lock, its handlers would stay on Pyro's stack for ever,
    and nobody would let the lock go.
    """
    global _turn
    before, _turn = _turn, _Turn()
    if before.depth and before.holder != threading.get_ident():
        del runtime._PYRO_STACK[before.handlers :]
        runtime._DIM_ALLOCATOR._stack[:] = before.plates


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_after_fork)
