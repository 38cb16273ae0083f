"""A grid of methods × seeds: each run a process of its own, written as it finishes, continued where it stopped.

A benchmark brings a module that answers ``python -m MODULE --one METHOD SEED …`` by writing ``{method}-{seed}.json``
into the folder of the runs; :mod:`examples.verify_prompts.results` and :mod:`examples.meld.results` do. What the runs
say is compared and tabled by :mod:`examples.comparison`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from bayes_adapters.errors import ConfigError
from bayes_adapters.records import Record, read_records, write_records

R = TypeVar("R", bound=Record)


def grid_arguments(
    parser: argparse.ArgumentParser,
    methods: Sequence[str],
    *,
    seeds: int,
    runs: Path,
    out: Path,
    option: str = "--methods",
) -> None:
    """Add the options that every grid has; ``option`` is what chooses among ``methods``."""
    parser.add_argument(option, nargs="+", default=list(methods), choices=list(methods))
    parser.add_argument("--seeds", type=int, default=seeds, help="seeds 0 … N-1")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--runs", type=Path, default=runs)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)


def parse_grid(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line and refuse numbers that cannot be."""
    arguments = parser.parse_args()
    if min(arguments.jobs, arguments.seeds) < 1:
        parser.error("--jobs and --seeds must be at least 1")
    return arguments


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
    methods: Sequence[str], seeds: Sequence[int], runs: Path, out: Path, read: Callable[[Path], list[R]] | None = None
) -> list[R]:
    """Collect the finished runs into one file of records, ``out``; nothing is written when none is finished.

    Args:
        methods: of the grid.
        seeds: of the grid.
        runs: the folder of the runs.
        out: where the records go.
        read: file → records; None is :func:`bayes_adapters.records.read_records`.
    """
    reader: Callable[[Path], list[Any]] = read or read_records
    records = [record for path in finished(methods, seeds, runs) for record in reader(path)]
    if records:
        write_records(out, records)
    return records
