"""What a person sees of a run: a bar on a terminal, a line an epoch elsewhere, TensorBoard on request."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bayes_adapters.errors import missing_package

_SHOWN = ("loss", "nll", "kl", "kl_weight")


@dataclass(frozen=True)
class Position:
    """Where a run is: epoch (from 0), batches used up in it, optimiser steps taken, and whether details are due."""

    epoch: int
    batches: int
    step: int
    due: bool = False


class Reporter:
    """Base of all reporters; by itself it is silent."""

    def step(self, at: Position, log: dict[str, float]) -> None:
        """Report one optimiser step."""

    def epoch(self, at: Position, log: dict[str, float]) -> None:
        """Report a finished epoch."""

    def close(self) -> None:
        """Give back the terminal and files."""


class Lines(Reporter):
    """One plain line an epoch on stderr.

    Args:
        epochs: the number of epochs, None where only steps are limited.
    """

    def __init__(self, epochs: int | None) -> None:
        self.epochs = epochs

    def epoch(self, at: Position, log: dict[str, float]) -> None:
        sys.stderr.write(f"{_title(at.epoch, self.epochs)}  step {at.step}  {numbers(log)}\n")
        sys.stderr.flush()


class Bar(Reporter):
    """A rich progress bar over the batches of each epoch, and a line for each finished epoch above it.

    Args:
        epochs: the number of epochs, None where only steps are limited.
        total: batches an epoch, None where the data have no length.
    """

    def __init__(self, epochs: int | None, total: int | None) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.epochs, self.total = epochs, total
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(_title(0, epochs), total=total, numbers="")
        self._bar.start()

    def close(self) -> None:
        self._bar.stop()

    def step(self, at: Position, log: dict[str, float]) -> None:
        shown = numbers({k: log[k] for k in _SHOWN})
        self._bar.update(self._task, description=_title(at.epoch, self.epochs), completed=at.batches, numbers=shown)

    def epoch(self, at: Position, log: dict[str, float]) -> None:
        self._bar.console.print(f"{_title(at.epoch, self.epochs)}  step {at.step}  {numbers(log)}", highlight=False)


class TensorBoard(Reporter):
    """Write ``train/…`` every ``log_every`` steps and ``epoch/…`` at each epoch's end, both against the step.

    Args:
        directory: where the event files go.
        step: the step a continued run starts from; what an interrupted run wrote after it is hidden.
    """

    def __init__(self, directory: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_package("fit(tensorboard=…)", "tensorboard", "tensorboard") from error
        self._writer: Any = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def close(self) -> None:
        self._writer.close()

    def step(self, at: Position, log: dict[str, float]) -> None:
        if at.due:
            self._write("train", log, at.step)

    def epoch(self, at: Position, log: dict[str, float]) -> None:
        self._write("epoch", log, at.step)

    def _write(self, prefix: str, log: dict[str, float], step: int) -> None:
        for name, value in log.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, step)


class All(Reporter):
    """Several reporters as one."""

    def __init__(self, reporters: list[Reporter]) -> None:
        self._reporters = reporters

    def close(self) -> None:
        for reporter in self._reporters:
            reporter.close()

    def step(self, at: Position, log: dict[str, float]) -> None:
        for reporter in self._reporters:
            reporter.step(at, log)

    def epoch(self, at: Position, log: dict[str, float]) -> None:
        for reporter in self._reporters:
            reporter.epoch(at, log)


def reporters(progress: bool, epochs: int | None, total: int | None, tensorboard: Path | None, step: int) -> Reporter:
    """Choose the reporters of a run; ``progress`` picks the bar where stderr is a terminal and lines elsewhere."""
    chosen: list[Reporter] = [] if tensorboard is None else [TensorBoard(tensorboard, step)]
    if progress:
        chosen.append(Bar(epochs, total) if sys.stderr.isatty() else Lines(epochs))
    return All(chosen)


def numbers(log: dict[str, float]) -> str:
    """Write a log on one line.

    >>> numbers({"epoch": 0, "step": 3, "loss": 0.69314718, "lr": 1e-5})
    'loss 0.6931  lr 1e-05'
    """
    return "  ".join(f"{name} {value:.4g}" for name, value in log.items() if name not in {"epoch", "step"})


def _title(epoch: int, epochs: int | None) -> str:
    return f"epoch {epoch + 1}" + (f"/{epochs}" if epochs else "")
