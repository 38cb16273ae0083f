"""Numbered stages of a long run: what is done, how far it is, and how long it will take on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Advance = Callable[[int], None]
"""Called with how many more units of a stage are done."""
_MEASURED = 0.04  # share of a stage after which its time is foretold
_QUIET = 20.0  # seconds between two lines of a stage where there is no terminal


class Stages:
    """Announces stages: a bar with the time left on a terminal, plain lines elsewhere.

    Args:
        count: how many stages there will be.
        stream: where to; None is the standard error stream.
        clock: seconds that never go back.
    """

    def __init__(
        self, count: int, stream: TextIO | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.count, self._stream, self._clock = count, stream or sys.stderr, clock
        self._done, self._started = 0, clock()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return self._clock() - self._started

    def say(self, message: str) -> None:
        """Print a line with the seconds since the start."""
        print(f"[{self.seconds:6.0f} s] {message}", file=self._stream, flush=True)

    @contextmanager
    def stage(self, title: str, total: int = 1, unit: str = "") -> Iterator[Advance]:
        """Announce the next stage, of ``total`` units; yields what is called as units are done.

        The time left is that of the units done so far, times those that are left.
        """
        self._done += 1
        name = f"{self._done}/{self.count} {title}"
        console = Console(file=self._stream)
        self.say(f"{name}: {f'{total:,} {unit}' if total else 'all in the cache'}" if total != 1 else f"{name} …")
        started = self._clock()
        if console.is_terminal and total:
            with self._bar(console, name, total) as advance:
                yield advance
        else:
            yield self._lines(name, total, started)
        if total:
            self.say(f"{name}: done in {self._clock() - started:.0f} s")

    @contextmanager
    def _bar(self, console: Console, name: str, total: int) -> Iterator[Advance]:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console, transient=True) as bar:
            task = bar.add_task(name, total=total)
            yield lambda count: bar.advance(task, count)

    def _lines(self, name: str, total: int, started: float) -> Advance:
        done, said = 0, -1.0

        def advance(count: int) -> None:
            nonlocal done, said
            done += count
            now = self._clock()
            if not _MEASURED * total <= done < total or 0 <= said > now - _QUIET:
                return
            said = now
            left = (now - started) / done * (total - done)
            self.say(f"{name}: {done:,} of {total:,}, about {left:.0f} s left")

        return advance
