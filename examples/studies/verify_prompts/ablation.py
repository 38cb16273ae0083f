"""Which remedy makes CALIBER-X's uncertainty know the audio? Each one alone against the plain form, then together.

    python -m examples.studies.verify_prompts.ablation --seeds 3 --jobs 2

Trained on the training scripts, measured on the test scripts. Each run is written as it finishes, and a second call
continues; records go to ``results/verify_prompts_ablation.json`` with the variant's name as ``method``. The folder of
the runs keeps each variant's settings: one that was measured with other or unknown settings is refused.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bayes_adapters.analysis.records import Record, write_records
from bayes_adapters.errors import ConfigError
from examples.studies.grid import Grid, claim_folder, finished
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.dataset import MISSING
from examples.studies.verify_prompts.experiment import CORRUPTED, PLAIN, Settings, evaluate, train

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


class Ablation(Grid[Record]):
    """Every variant of CALIBER-X × seeds."""

    module = "examples.studies.verify_prompts.ablation"
    description = __doc__
    methods, option = tuple(VARIANTS), "--variants"
    seeds = 3
    runs, out = Path("runs/ablation"), Path("results/verify_prompts_ablation.json")

    def one(self, method: str, seed: int, arguments: argparse.Namespace) -> None:
        """Train and measure one variant with one seed."""
        run_one(method, seed, arguments.device, arguments.runs)

    def prepare(self, arguments: argparse.Namespace) -> list[str]:
        """Claim the folders of the variants, of the others too if their records are gathered; fetch the corpus once."""
        for name in VARIANTS:
            if name in arguments.methods or finished([name], range(arguments.seeds), arguments.runs):
                claim(name, arguments.runs)
        Corpus.load()
        return []


if __name__ == "__main__":
    raise SystemExit(Ablation().main())
