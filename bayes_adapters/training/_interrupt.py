"""Ctrl-C and SIGTERM: one way out of a run for both, and sections that neither may leave half-way."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def terminable() -> Iterator[None]:
    """Within the context SIGTERM, by which Slurm and Kubernetes end a job, raises KeyboardInterrupt as Ctrl-C does.

    A handler that somebody has installed stays. Python lets only the main thread install one; elsewhere, nothing is
    done.
    """
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not ours:
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM within the context and deliver the first of them at its end.

    Python delivers signals to the main thread only, so elsewhere, and where a signal has no handler, there is nothing
    to do.
    """
    previous: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        previous = {number: handler for number in _SIGNALS if callable(handler := signal.getsignal(number))}
    received: list[tuple[int, Any]] = []
    for number in previous:
        signal.signal(number, lambda *call: received.append(call))
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received:
            previous[received[0][0]](*received[0])


def _interrupt(number: int, _frame: Any) -> None:
    raise KeyboardInterrupt(signal.Signals(number).name)
