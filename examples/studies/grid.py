"""A grid of methods × seeds: each run a process of its own, written as it finishes, continued where it stopped.

A benchmark is a :class:`Grid`: its module answers ``python -m MODULE --one METHOD SEED …`` by writing
``{method}-{seed}.json`` into the folder of the runs. What the runs say is compared and tabled by
:mod:`examples.studies.comparison`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
import transformers

from bayes_adapters.analysis.records import Record, read_records, write_records
from bayes_adapters.devices import pick_device
from bayes_adapters.errors import ConfigError
from examples.studies.user_errors import user_errors

R = TypeVar("R", bound=Record)


def claim_folder(runs: Path, settings: Any, **facts: Any) -> None:
    """Write the settings into ``runs``, or check that the runs in it were made with the same ones.

    Args:
        runs: the folder.
        settings: a dataclass of what is the same for all runs; its ``device`` is left out.
        **facts: what else must be the same, as JSON: a digest of the data, say.

    Raises:
        ConfigError: they were made with others (the differences are listed), or the file there is damaged.
    """
    path = runs / "settings.json"
    own = {k: v for k, v in asdict(settings).items() if k != "device"} | facts
    wanted = json.loads(json.dumps(own))
    if not path.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON ({error}), so nobody knows how the runs beside it were made. Pass another --runs "
            "folder, or remove that one."
        ) from error
    absent = "not set"
    different = [
        f"{k}: {found.get(k, absent)} there, {wanted.get(k, absent)} now"
        for k in wanted | found
        if found.get(k, absent) != wanted.get(k, absent)
    ]
    if different:
        raise ConfigError(
            f"The runs in {runs} were made with other settings ({'; '.join(different)}). Pass another --runs folder, "
            "or remove that one."
        )


def run_grid(
    module: str, methods: Sequence[str], seeds: Sequence[int], runs: Path, *, jobs: int, arguments: Sequence[str]
) -> int:
    """Run what is not done yet, ``jobs`` processes at a time; return the number of failures.

    A run is ``python -m module --one METHOD SEED arguments…``; it is done when ``{method}-{seed}.json`` is in ``runs``,
    and what it prints goes to ``{method}-{seed}.log`` there. Without OMP_NUM_THREADS the runs share the processors.
    """
    todo = [(m, s) for s in seeds for m in methods if not (runs / f"{m}-{s}.json").is_file()]
    started, failures = time.perf_counter(), 0
    active: dict[subprocess.Popen[bytes], tuple[str, int]] = {}
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} | os.environ
    try:
        while todo or active:
            while todo and len(active) < jobs:
                method, seed = todo.pop(0)
                command = [sys.executable, "-m", module, "--one", method, str(seed), *arguments]
                with (runs / f"{method}-{seed}.log").open("wb") as log:
                    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                active[process] = (method, seed)
            time.sleep(1)
            for process in [p for p in active if p.poll() is not None]:
                method, seed = active.pop(process)
                done = process.returncode == 0 and (runs / f"{method}-{seed}.json").is_file()
                failures += not done
                state = "done" if done else f"FAILED, see {runs / f'{method}-{seed}.log'}"
                left = f"{len(todo) + len(active)} to go"
                seconds = time.perf_counter() - started
                print(f"[{seconds:6.0f} s] {method} seed {seed}: {state}; {left}", file=sys.stderr, flush=True)
    finally:
        _stop(list(active))
    return failures


def _stop(processes: Sequence[subprocess.Popen[bytes]], patience: float = 30.0) -> None:
    """Ctrl-C reaches the runs as well, and they write their checkpoints: wait for that, then end what is left."""
    deadline = time.monotonic() + patience
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()


def finished(methods: Sequence[str], seeds: Sequence[int], runs: Path) -> list[Path]:
    """Return ``{method}-{seed}.json`` of every run that is done.

    A run writes it last: what lies beside it is whole, and without it a file may have been cut off.
    """
    paths = [runs / f"{method}-{seed}.json" for method in methods for seed in seeds]
    return [path for path in paths if path.is_file()]


def gather(
    methods: Sequence[str],
    seeds: Sequence[int],
    runs: Path,
    out: Path,
    kind: type[Any] = Record,
    *,
    keep: bool = False,
) -> list[Any]:
    """Collect the finished runs into one file of records, ``out``; nothing is written when none is finished.

    Args:
        methods: of the grid.
        seeds: of the grid.
        runs: the folder of the runs.
        out: where the records go.
        kind: class of the records, :class:`Record` or a subclass.
        keep: whether records in ``out`` of methods without a finished run stay there.
    """
    records = [record for path in finished(methods, seeds, runs) for record in read_records(path, kind)]
    if records:
        write_records(out, _with_kept(records, out, kind, methods) if keep and out.is_file() else records)
    return records


def _with_kept(records: list[Any], out: Path, kind: type[Any], methods: Sequence[str]) -> list[Any]:
    """Return ``records`` and those in ``out`` of other methods, in the order of the methods."""
    measured = {record.method for record in records}
    kept = [old for old in read_records(out, kind) if old.method not in measured]
    order = {method: number for number, method in enumerate(methods)}
    return sorted([*records, *kept], key=lambda record: order.get(record.method, len(order)))


class Grid(ABC, Generic[R]):
    """A benchmark as a command: run what is missing, gather every finished run, report.

    A subclass says which methods there are, what one run does and what the report is; :meth:`main` is its command line.

    Attributes:
        module: what ``python -m`` runs.
        description: of the command.
        methods: all there are; the command may run some, the report is about all that have finished.
        record: the class of a run's records.
        option: the name of the option that chooses among ``methods``.
        seeds: how many, unless the command says otherwise.
        runs: the folder of the runs, unless the command says otherwise.
        out: the file of all records, unless the command says otherwise.
        on_device: whether there is an option ``--device``.
    """

    module: str
    description: str | None
    methods: Sequence[str]
    record: type[Any] = Record
    option = "--methods"
    seeds = 5
    runs: Path
    out: Path
    on_device = True

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add options of this benchmark."""

    @abstractmethod
    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Do one run: write ``{method}-{seed}.csv``, then ``{method}-{seed}.json``, into ``arguments.runs``."""

    @abstractmethod
    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folder of the runs, fetch what they share, and return the options of this benchmark for a run."""

    def run(self, arguments: argparse.Namespace, passed: Sequence[str]) -> int:
        """Run what is not done yet; return the number of failures."""
        seeds = range(arguments.seeds)
        return run_grid(self.module, arguments.methods, seeds, arguments.runs, jobs=arguments.jobs, arguments=passed)

    def report(self, arguments: argparse.Namespace, records: list[R], predictions: list[Path]) -> None:
        """Say what came out, from the records and the files of predictions of all finished runs."""

    @user_errors
    def main(self) -> int:
        """Parse the command line and run; return the exit status: 1 after a run that failed, 2 after a refusal."""
        transformers.utils.logging.disable_progress_bar()  # the lines printed here say what is going on
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
        arguments = self._parse()
        if self.on_device:
            arguments.device = str(pick_device(arguments.device))
        if arguments.one:
            self.one(arguments.one[0], int(arguments.one[1]), arguments)
            return 0
        passed = ["--runs", str(arguments.runs), *self.prepare(arguments)]
        failures = self.run(arguments, passed + (["--device", arguments.device] if self.on_device else []))
        seeds = range(arguments.seeds)
        records = gather(self.methods, seeds, arguments.runs, arguments.out, self.record, keep=arguments.keep)
        if not records:
            print(f"error: no run has finished; see the logs in {arguments.runs}", file=sys.stderr)
            return 1
        paths = [path.with_suffix(".csv") for path in finished(self.methods, seeds, arguments.runs)]
        self.report(arguments, records, paths)
        return 1 if failures else 0

    def _parse(self) -> argparse.Namespace:
        parser = argparse.ArgumentParser(
            description=self.description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        names = list(self.methods)
        parser.add_argument(self.option, dest="methods", nargs="+", default=names, choices=names)
        parser.add_argument("--seeds", type=int, default=self.seeds, help="seeds 0 … N-1")
        parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
        if self.on_device:
            parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
        parser.add_argument("--runs", type=Path, default=self.runs)
        parser.add_argument("--out", type=Path, default=self.out)
        parser.add_argument("--keep", action="store_true", help="records of methods without a run here stay in --out")
        parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
        self.options(parser)
        arguments = parser.parse_args()
        if min(arguments.jobs, arguments.seeds) < 1:
            parser.error("--jobs and --seeds must be at least 1")
        return arguments
