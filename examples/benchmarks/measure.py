"""Timing of several things in turn, and the statistics of paired ratios."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""Wall-clock time; or this process's time on all its CPU cores, which other programs of a busy machine disturb less."""


@dataclass(frozen=True)
class Variant:
    """Something to time.

    Args:
        run: does it once.
        setting: a context around each run, entered outside the timed region.
    """

    run: Callable[[], object]
    setting: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Ratio:
    """The median over rounds of time / time of the base in the same round, and its 95 % bootstrap interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def interleave(
    variants: Mapping[str, Variant],
    *,
    rounds: int,
    warm_up: int,
    device: str | torch.device = "cpu",
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Run every variant once a round, in random order, so that all of them see the same load of the machine.

    Args:
        variants: name → what to time.
        rounds: measured rounds.
        warm_up: rounds before them that are thrown away.
        device: a CUDA device is waited for before and after each run.
        clock: seconds so far; see :data:`CLOCKS`.
        seed: of the order.

    Returns:
        Name → seconds, one number a round.
    """
    kind, source = torch.device(device).type, random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warm_up + rounds):
        order = list(variants)
        source.shuffle(order)
        for name in order:
            with variants[name].setting():
                synchronise(kind)
                started = clock()
                variants[name].run()
                synchronise(kind)
                elapsed = clock() - started
            if number >= warm_up:
                seconds[name].append(elapsed)
    return seconds


def synchronise(kind: str) -> None:
    """Wait for the device, where it works behind the program's back."""
    if kind == "cuda":
        torch.cuda.synchronize()


def median(values: list[float]) -> float:
    """The median of at least one number."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(0.5))


def ratio(seconds: Mapping[str, list[float]], name: str, base: str, *, draws: int = 2000) -> Ratio:
    """Compare two variants round by round."""
    paired = torch.tensor(seconds[name], dtype=torch.float64) / torch.tensor(seconds[base], dtype=torch.float64)
    rows = torch.randint(len(paired), (draws, len(paired)), generator=torch.Generator().manual_seed(0))
    low, high = paired[rows].quantile(0.5, 1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Ratio(float(paired.quantile(0.5)), low, high)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, its first column left-aligned and the others right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
