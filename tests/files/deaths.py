"""A process that is killed at its k-th change of a folder, for every k."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def deaths(folder: Path, start: Path | None, work: Callable[[Path], Any]) -> Iterator[int]:
    """Give 0, 1, …: ``folder``, at first a copy of ``start``, is then as a process has left it that was killed before
    its k-th change in it; the last one was not killed."""
    for number in range(1000):
        shutil.rmtree(folder, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, folder)
        child = os.fork()
        if not child:
            _live(folder, number, work)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        assert code in (0, 9), f"the work itself failed with {code}"
        yield number
        if code == 0:
            return


def _live(folder: Path, number: int, work: Callable[[Path], Any]) -> None:
    """The child's life: ``os._exit`` runs no cleaning up, as a kill does not."""
    left = number

    def die(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (writes or event in _CHANGES) and str(arguments[0]).startswith(str(folder)):
            if not left:
                os._exit(9)
            left -= 1

    try:
        sys.addaudithook(die)
        work(folder)
    except BaseException as error:  # noqa: BLE001
        print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)
