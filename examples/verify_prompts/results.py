"""All methods over several seeds: ``make results``. Each run is written as it finishes; a second call continues.

    python -m examples.verify_prompts.results --seeds 5 --jobs 2

Records go to ``results/verify_prompts.json``, predictions and the report to ``runs/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from bayes_adapters.errors import BayesAdaptersError, ConfigError
from bayes_adapters.records import Record, read_records, write_records
from examples.verify_prompts.corpus import Corpus
from examples.verify_prompts.demo import pick_device, quiet, say, setup
from examples.verify_prompts.experiment import Settings, evaluate, train
from examples.verify_prompts.methods import METHODS
from examples.verify_prompts.predictions import read_predictions, write_predictions
from examples.verify_prompts.report import write_report

RECORDS = Path("results/verify_prompts.json")
RUNS = Path("runs/results")


def run_one(method: str, seed: int, settings: Settings, runs: Path) -> None:
    """Train and measure one method with one seed, and write its records and predictions."""
    checkpoint = runs / "checkpoints" / f"{method}-{seed}"
    checkpoint.mkdir(parents=True, exist_ok=True)  # fails now rather than after the first epoch
    corpus = Corpus.load()
    trained = train(corpus, method, seed, settings, checkpoint=checkpoint)
    records, predictions = evaluate(corpus, trained, settings)
    write_predictions(runs / f"{method}-{seed}.csv", predictions)
    write_records(runs / f"{method}-{seed}.json", records)


def gather(methods: Sequence[str], seeds: Sequence[int], runs: Path, out: Path) -> list[Record]:
    """Collect the finished runs into one file of records."""
    records = [
        record
        for method in methods
        for seed in seeds
        if (path := runs / f"{method}-{seed}.json").is_file()
        for record in read_records(path)
    ]
    if records:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_records(out, records)
    return records


def claim_folder(runs: Path, settings: Settings) -> None:
    """Write the settings into ``runs``, or check that the runs in it were made with the same ones.

    Raises:
        ConfigError: they were made with others; the differences are listed.
    """
    path = runs / "settings.json"
    wanted = json.loads(json.dumps({k: v for k, v in asdict(settings).items() if k != "device"}))
    if not path.is_file():
        runs.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=1) + "\n")
        return
    found = json.loads(path.read_text())
    different = [f"{k}: {found.get(k)} there, {v} now" for k, v in wanted.items() if found.get(k) != v]
    if different:
        raise ConfigError(
            f"The runs in {runs} were made with other settings ({'; '.join(different)}). Pass another --runs folder, "
            "or remove that one."
        )


def run_grid(methods: Sequence[str], seeds: Sequence[int], runs: Path, jobs: int, device: str) -> int:
    """Run what is not done yet, ``jobs`` processes at a time; return the number of failures."""
    claim_folder(runs, Settings(device=device))
    Corpus.load()  # what is fetched and converted once is there before processes share it
    todo = [(m, s) for s in seeds for m in methods if not (runs / f"{m}-{s}.json").is_file()]
    started, failures = time.perf_counter(), 0
    active: dict[subprocess.Popen[bytes], tuple[str, int]] = {}
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} | os.environ
    while todo or active:
        while todo and len(active) < jobs:
            method, seed = todo.pop(0)
            command = [sys.executable, "-m", "examples.verify_prompts.results", "--one", method, str(seed)]
            with (runs / f"{method}-{seed}.log").open("wb") as log:
                arguments = [*command, "--device", device, "--runs", str(runs)]
                process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
            active[process] = (method, seed)
        time.sleep(1)
        for process in [p for p in active if p.poll() is not None]:
            method, seed = active.pop(process)
            failures += process.returncode != 0
            state = "done" if process.returncode == 0 else f"FAILED, see {runs / f'{method}-{seed}.log'}"
            say(f"{method} seed {seed}: {state}; {len(todo) + len(active)} to go", started)
    return failures


def main() -> int:
    """Parse the command line and run."""
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0 … N-1")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--out", type=Path, default=RECORDS)
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.jobs, arguments.seeds) < 1:
        parser.error("--jobs and --seeds must be at least 1")
    try:
        device = pick_device(arguments.device)
        settings = Settings(device=device)
        if arguments.one:
            run_one(arguments.one[0], int(arguments.one[1]), settings, arguments.runs)
            return 0
        started = time.perf_counter()
        seeds = range(arguments.seeds)
        failures = run_grid(arguments.methods, seeds, arguments.runs, arguments.jobs, device)
        records = gather(arguments.methods, seeds, arguments.runs, arguments.out)
        if not records:
            print(f"error: no run has finished; see the logs in {arguments.runs}", file=sys.stderr)
            return 1
        files = [arguments.runs / f"{m}-{s}.csv" for m in arguments.methods for s in seeds]
        predictions = [row for path in files if path.is_file() for row in read_predictions(path)]
        description = setup(Corpus.load(), settings, [f"{arguments.jobs} runs at a time"], started)
        write_report(arguments.runs, records, predictions, setup=description)
    except BayesAdaptersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    else:
        return 1 if failures else 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    raise SystemExit(main())
