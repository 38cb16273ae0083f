"""A few methods with one seed as a command: train, measure, print the tables."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import transformers

from bayes_adapters.analysis.records import write_records
from examples.studies.rows import write_rows
from examples.studies.speaking_time.data import Data
from examples.studies.speaking_time.experiment import LINE, QUICK, Settings, Train, Trained, run
from examples.studies.speaking_time.records import Result, Row
from examples.studies.speaking_time.tables import tables
from examples.studies.speaking_time.task import repeat_sd
from examples.studies.user_errors import user_errors


def compare(
    methods: Sequence[str],
    train: Train,
    keep: Callable[[str, Trained], None] | None,
    settings: Settings,
    *,
    seed: int = 0,
    out: Path | None = None,
    data: Data | None = None,
) -> tuple[list[Result], list[Row]]:
    """Train methods, measure them and the line on unseen scripts and on other texts, print the tables.

    Args:
        methods: names.
        train: see :data:`examples.studies.speaking_time.experiment.Train`.
        keep: called with the name and what was trained; None keeps nothing.
        settings: what is run.
        seed: of initial values, order and draws.
        out: a folder for ``metrics.json`` and ``predictions.csv``; None writes nothing.
        data: None means :func:`examples.studies.speaking_time.data.load`.

    Returns:
        Records and predictions.
    """
    started = time.process_time()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)  # before training, for it may be a file
    task = settings.task(data)
    results: list[Result] = []
    rows: list[Row] = []
    for method in (*methods, LINE):
        found = run(task, method, train, settings, seed, keep)
        results += found[0]
        rows += found[1]
        print(f"{method}: {time.process_time() - started:.0f} s of processor time", file=sys.stderr, flush=True)
    print("\n\n".join("\n".join(lines) for lines in tables(results, rows).values()))
    print(f"\nErrors are in log(seconds); {repeat_sd(task.data):.3f} between recordings of one script.")
    if out is not None:
        write_records(out / "metrics.json", results)
        write_rows(out / "predictions.csv", Row, rows)
    return results, rows


@user_errors
def command(main: Callable[..., Any], description: str | None, arguments: list[str] | None = None) -> int:
    """Call ``main(settings, seed=…, out=…)`` as the command line says; return 2 on an error that is the user's."""
    transformers.utils.logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for the records, the predictions and the pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="few scripts, epochs and draws: to see that it runs")
    given = parser.parse_args(arguments)
    main(QUICK if given.quick else Settings(), seed=given.seed, out=given.out)
    return 0
