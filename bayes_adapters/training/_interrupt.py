"""Ctrl-C and SIGTERM: one way out of a run for both, and sections that neither may leave half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


@contextmanager
def terminable() -> Iterator[None]:
    """Within the context SIGTERM, by which Slurm and Kubernetes end a job, raises KeyboardInterrupt as Ctrl-C does.

    A handler that somebody has installed stays.
    """

    def interrupt(number: int, _frame: Any) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with _handled({signal.SIGTERM: interrupt} if free else {}):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM within the context and deliver the first of them at its end.

    Where a signal has no handler, there is nothing to hold back.
    """
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    received: list[tuple[int, Any]] = []
    try:
        with _handled({n: lambda *call: received.append(call) for n, handler in before.items() if callable(handler)}):
            yield
    finally:
        for number, frame in received[:1]:
            before[number](number, frame)


@contextmanager
def _handled(handlers: Mapping[int, Callable[[int, Any], Any]]) -> Iterator[None]:
    """Install handlers within the context; Python lets only the main thread, and delivers signals to no other."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items() if main}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
