"""Which remedy makes CALIBER-X's uncertainty know the audio? Each one alone against the plain form, then together.

    python -m examples.verify_prompts.ablation --seeds 3 --jobs 2

Trained on the training scripts, measured on the test scripts. Each run is written as it finishes, and a second call
continues; records go to ``results/verify_prompts_ablation.json`` with the variant's name as ``method``. The folder of
the runs keeps each variant's settings: one that was measured with other or unknown settings is refused.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

from bayes_adapters.errors import BayesAdaptersError, ConfigError
from bayes_adapters.records import write_records
from examples.grid import claim_folder, finished, gather, grid_arguments, parse_grid, run_grid
from examples.verify_prompts.corpus import Corpus
from examples.verify_prompts.dataset import MISSING
from examples.verify_prompts.demo import pick_device, quiet
from examples.verify_prompts.experiment import CORRUPTED, PLAIN, Settings, evaluate, train

RECORDS = Path("results/verify_prompts_ablation.json")
RUNS = Path("runs/ablation")

CONDITIONS = (
    "clean", "white@20", "white@10", "white@0", "white@-5", "babble@10", "babble@0", "babble@-5", "reverb", "clip",
    MISSING, "ood-es", "ood-fr", "ood-it", "ood-ru",
)  # fmt: skip
_PLAIN = Settings(mix=PLAIN, reliability=False, prior_scale=0.2, kl_weight=1e-4, conditions=CONDITIONS)

VARIANTS: dict[str, Settings] = {
    "plain": _PLAIN,
    "withheld": replace(_PLAIN, mix={"clean": 0.9, MISSING: 0.1}),
    "noise": replace(_PLAIN, mix={k: v / 0.9 for k, v in CORRUPTED.items() if k != MISSING}),
    "noise+withheld": replace(_PLAIN, mix=CORRUPTED),
    "kl-x10": replace(_PLAIN, kl_weight=1e-3),
    "kl-x0.1": replace(_PLAIN, kl_weight=1e-5),
    "prior-1": replace(_PLAIN, prior_scale=1.0),
    "wide-prior": replace(_PLAIN, prior_scale=1.0, kl_weight=1e-5),
    "widen": replace(_PLAIN, reliability=True),
    "to-prior": replace(_PLAIN, reliability=True, fallback="prior", fallback_scale=None),
    "to-wide-prior": replace(_PLAIN, reliability=True, fallback="prior"),
    "all-to-wide-prior": Settings(fallback="prior", conditions=CONDITIONS),
    "all": Settings(conditions=CONDITIONS),
}
"""Variant → settings; ``all`` is what the demo trains.

``prior-1`` and ``kl-x0.1`` each change one thing of ``plain``, ``wide-prior`` both.
"""


def claim(variant: str, runs: Path) -> None:
    """Write the settings of ``variant`` into its folder of ``runs``, or check that its records were made with them.

    Raises:
        ConfigError: its records were made with others, or nothing says with which.
    """
    records = sorted(runs.glob(f"{variant}-[0-9]*.json"))
    if records and not (runs / variant / "settings.json").is_file():
        raise ConfigError(
            f"{runs} has records of {variant!r}, such as {records[0].name}, and nothing says with which settings. Pass "
            f"another --runs folder, or remove the folder {variant} and {variant}-*.json there."
        )
    claim_folder(runs / variant, VARIANTS[variant])


def run_one(variant: str, seed: int, device: str, runs: Path) -> None:
    """Train and measure CALIBER-X once with the settings of ``variant``, and write its records."""
    claim(variant, runs)
    settings = replace(VARIANTS[variant], device=device)
    corpus = Corpus.load()
    trained = train(corpus, "caliber-x", seed, settings, checkpoint=runs / variant / f"checkpoint-{seed}")
    records, _ = evaluate(corpus, trained, settings)
    write_records(runs / f"{variant}-{seed}.json", [replace(record, method=variant) for record in records])


def main() -> int:
    """Parse the command line and run what is not done yet."""
    quiet()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    grid_arguments(parser, list(VARIANTS), seeds=3, runs=RUNS, out=RECORDS, option="--variants")
    arguments = parse_grid(parser)
    try:
        device = pick_device(arguments.device)
        if arguments.one:
            run_one(arguments.one[0], int(arguments.one[1]), device, arguments.runs)
            return 0
        seeds = range(arguments.seeds)
        for name in VARIANTS:  # the others' records are gathered as well
            if name in arguments.variants or finished([name], seeds, arguments.runs):
                claim(name, arguments.runs)
        Corpus.load()  # what is fetched and converted once is there before processes share it
        failures = run_grid(
            "examples.verify_prompts.ablation",
            arguments.variants,
            seeds,
            arguments.runs,
            jobs=arguments.jobs,
            arguments=["--device", device, "--runs", str(arguments.runs)],
        )
        if not gather(list(VARIANTS), seeds, arguments.runs, arguments.out):
            print(f"error: no run has finished; see the logs in {arguments.runs}", file=sys.stderr)
            return 1
    except BayesAdaptersError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    else:
        return 1 if failures else 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    raise SystemExit(main())
