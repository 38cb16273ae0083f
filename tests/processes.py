"""Two processes that work together, forked from this one: nothing is imported anew."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

COUNT = 2


def together(work: Callable[[], Any], folder: Path) -> list[Any]:
    """Call ``work`` in each of two processes that torchrun could have started; return what they return."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_run, (work, str(folder), port), nprocs=COUNT, start_method="fork")
    return [torch.load(folder / f"{number}.pt") for number in range(COUNT)]


def _run(number: int, work: Callable[[], Any], folder: str, port: int) -> None:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    os.environ |= {"WORLD_SIZE": str(COUNT), "LOCAL_WORLD_SIZE": str(COUNT), "MASTER_PORT": str(port)}
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()  # what the parent knew
    torch.distributed.init_process_group("gloo")
    torch.save(work(), Path(folder) / f"{number}.pt")
    torch.distributed.destroy_process_group()
