"""Quantities a guide computes only when somebody asks: ``with collecting() as seen: guide(batch)``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

_collected: ContextVar[dict[str, dict[str, float]] | None] = ContextVar("bayes_adapters_diagnostics", default=None)


@contextmanager
def collecting() -> Iterator[dict[str, dict[str, float]]]:
    """Within the context guides record diagnostics: quantity → site → mean value over real tokens.

    There is ``attention_entropy``, in nats; of several contexts it is under ``"<site> <context>"``.
    """
    seen: dict[str, dict[str, float]] = {}
    token = _collected.set(seen)
    try:
        yield seen
    finally:
        _collected.reset(token)


def record(quantity: str, site: str, value: Callable[[], Tensor]) -> None:
    """Record the mean of ``value()`` for ``site`` if a collection is active; otherwise do not compute it."""
    seen = _collected.get()
    if seen is not None:
        with torch.no_grad():
            seen.setdefault(quantity, {})[site] = float(value().mean())
