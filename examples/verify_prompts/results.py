"""All methods over several seeds: ``make results``. Each run is written as it finishes; a second call continues.

    python -m examples.verify_prompts.results --seeds 5 --jobs 2

Records go to ``results/verify_prompts.json``, predictions and the report to ``runs/results/``.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from bayes_adapters.errors import BayesAdaptersError
from bayes_adapters.records import Record, write_records
from examples.grid import claim_folder, finished, gather, grid_arguments, parse_grid, run_grid
from examples.verify_prompts.corpus import Corpus
from examples.verify_prompts.demo import pick_device, quiet, setup
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


def main() -> int:
    """Parse the command line and run."""
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    grid_arguments(parser, list(METHODS), seeds=5, runs=RUNS, out=RECORDS)
    arguments = parse_grid(parser)
    try:
        device = pick_device(arguments.device)
        settings = Settings(device=device)
        if arguments.one:
            run_one(arguments.one[0], int(arguments.one[1]), settings, arguments.runs)
            return 0
        started = time.perf_counter()
        seeds = range(arguments.seeds)
        own_weights = {name: str(m.kl_weight) for name, m in METHODS.items() if m.kl_weight is not None}
        claim_folder(arguments.runs, settings, kl_weights=own_weights)
        Corpus.load()  # what is fetched and converted once is there before processes share it
        failures = run_grid(
            "examples.verify_prompts.results",
            arguments.methods,
            seeds,
            arguments.runs,
            jobs=arguments.jobs,
            arguments=["--device", device, "--runs", str(arguments.runs)],
        )
        records: list[Record] = gather(list(METHODS), seeds, arguments.runs, arguments.out)
        if not records:
            print(f"error: no run has finished; see the logs in {arguments.runs}", file=sys.stderr)
            return 1
        files = [path.with_suffix(".csv") for path in finished(list(METHODS), seeds, arguments.runs)]
        predictions = [row for path in files for row in read_predictions(path)]
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
