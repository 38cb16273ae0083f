"""A grid of methods and seeds: one process a run, one JSON file a run, a second call continues.

Nothing here knows about body signals: what runs is a list of commands.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.records import Record, read_records, write_records


def claim_folder(runs: Path, settings: Mapping[str, Any]) -> None:
    """Write ``settings`` into ``runs``, or check that the runs in it were made with the same ones.

    Raises:
        ConfigError: they were made with others; the differences are listed.
        DataError: the folder's ``settings.json`` cannot be read.
    """
    path = runs / "settings.json"
    wanted = json.loads(json.dumps(settings))
    if not path.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1) + "\n")
        return
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error}). Remove the folder, or pass another --runs.") from error
    keys = dict.fromkeys([*wanted, *found])
    different = [f"{k}: {found.get(k)} there, {wanted.get(k)} now" for k in keys if found.get(k) != wanted.get(k)]
    if different:
        raise ConfigError(
            f"The runs in {runs} were made with other settings ({'; '.join(different)}). Pass another --runs folder, "
            "or remove that one."
        )


def run_commands(commands: Mapping[str, Sequence[str]], runs: Path, jobs: int, report: Callable[[str], None]) -> int:
    """Run each ``python -m …`` command, ``jobs`` at a time, its output in ``runs/<name>.log``; return the failures."""
    todo, failures = dict(commands), 0
    active: dict[subprocess.Popen[bytes], str] = {}
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} | os.environ
    try:
        while todo or active:
            while todo and len(active) < jobs:
                name = next(iter(todo))
                command = [sys.executable, "-m", *todo.pop(name)]
                with (runs / f"{name}.log").open("wb") as log:
                    active[subprocess.Popen(command, env=environment, stdout=log, stderr=log)] = name
            time.sleep(0.2)
            for process in [p for p in active if p.poll() is not None]:
                name = active.pop(process)
                failures += process.returncode != 0
                state = "done" if process.returncode == 0 else f"FAILED, see {runs / f'{name}.log'}"
                report(f"{name}: {state}; {len(todo) + len(active)} to go")
    finally:
        for process in active:  # an interrupt leaves no run behind that nobody waits for
            process.terminate()
    return failures


def gather(names: Sequence[str], runs: Path, out: Path) -> list[Record]:
    """Collect the records of the finished runs into one file, in the order of ``names``; without any, write nothing."""
    paths = [runs / f"{name}.json" for name in names]
    records = [record for path in paths if path.is_file() for record in read_records(path)]
    if records:
        write_records(out, records)
    return records
