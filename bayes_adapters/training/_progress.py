"""What a person sees of a run: a line per epoch, a bar where stderr is a terminal, TensorBoard on request."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from bayes_adapters.errors import missing_package
from bayes_adapters.training._state import RunState

_SHOWN = ("loss", "nll", "kl", "kl_weight")


class Report:
    """Where the numbers of a run go as it trains.

    Args:
        progress: whether stderr gets anything.
        epochs: the number of epochs, None where only steps are limited.
        total: batches per epoch, None where the data have no length.
        tensorboard: a directory for ``train/…`` of the steps that are due and ``epoch/…``, both against the step.
        step: the step a continued run starts from; what an interrupted run wrote after it is hidden.
    """

    def __init__(
        self, progress: bool, epochs: int | None, total: int | None, tensorboard: Path | None, step: int
    ) -> None:
        self._epochs = epochs
        self._writer = None if tensorboard is None else _writer(tensorboard, step)
        terminal = progress and sys.stderr.isatty()
        self._console = Console(stderr=True, quiet=not progress, force_terminal=terminal, force_jupyter=False)
        self._bar = Progress(
            *("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), "{task.fields[numbers]}"),
            console=self._console,
            transient=True,
            disable=not terminal,
        )
        self._task = self._bar.add_task(self._title(0), total=total, numbers="")
        self._bar.start()

    def step(self, state: RunState, record: Mapping[str, float], due: bool) -> None:
        """Report the optimiser step after which the run stands at ``state``."""
        shown = numbers({name: record[name] for name in _SHOWN})
        self._bar.update(self._task, description=self._title(state.epoch), completed=state.batches, numbers=shown)
        if due:
            self._write("train", record, state.step)

    def epoch(self, log: Mapping[str, float]) -> None:
        """Report a finished epoch."""
        step = int(log["step"])
        self._console.out(f"{self._title(int(log['epoch']))}  step {step}  {numbers(log)}", highlight=False)
        self._write("epoch", log, step)

    def note(self, text: str) -> None:
        """Say something about the whole run."""
        self._console.out(text, highlight=False)

    def close(self) -> None:
        """Give back the terminal and files."""
        self._bar.stop()
        if self._writer is not None:
            self._writer.close()

    def _write(self, prefix: str, log: Mapping[str, float], step: int) -> None:
        if self._writer is not None:
            for name, value in log.items():
                self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch + 1}" + (f"/{self._epochs}" if self._epochs else "")


def _writer(directory: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing_package("fit(tensorboard=…)", "tensorboard", "tensorboard") from error
    return SummaryWriter(str(directory), purge_step=step + 1 if step else None)


def numbers(log: Mapping[str, float]) -> str:
    """Write a log on one line.

    >>> numbers({"epoch": 0, "step": 3, "loss": 0.69314718, "lr": 1e-5})
    'loss 0.6931  lr 1e-05'
    """
    return "  ".join(f"{name} {value:.4g}" for name, value in log.items() if name not in {"epoch", "step"})
