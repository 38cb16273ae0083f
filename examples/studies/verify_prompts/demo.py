"""The demo: fetch, encode, train, evaluate, report. One command, one folder.

``python -m examples.studies.verify_prompts.demo --out runs/demo``
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers

from bayes_adapters.analysis.records import Record
from bayes_adapters.devices import pick_device
from bayes_adapters.errors import ConfigError
from bayes_adapters.files import save
from examples.studies.user_errors import user_errors
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.experiment import Settings, evaluate, task_description, train
from examples.studies.verify_prompts.methods import METHODS, find
from examples.studies.verify_prompts.predictions import Prediction
from examples.studies.verify_prompts.report import CONDITIONS, write_report

DEMO_METHODS = ("caliber-x", "c-lora", "lora-fusion")
SHORT = Settings(epochs=6, samples=4, conditions=("clean", "hard", "white@-5", "missing", "ood-fr"))
"""The shortened demo: the same code path with fewer epochs, draws and conditions."""
FULL_BAR, SHORT_BAR = 0.90, 0.65
"""The clean AUC on unseen scripts below which CALIBER-X's demo has failed."""


def run(out: Path, methods: tuple[str, ...], seed: int, settings: Settings, bar: float) -> int:
    """Run the demo; return 0 if the first method reaches ``bar`` on clean recordings of unseen scripts, else 1.

    Raises:
        ConfigError: see :func:`require_saveable`; nothing was fetched.
    """
    require_saveable(methods)
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    corpus = Corpus.load()
    (out / "splits.json").write_text(corpus.splits.to_json() + "\n")
    say(f"{len(corpus.prompts)} recordings; device {settings.device}", started)
    records: list[Record] = []
    predictions: list[Prediction] = []
    times: list[str] = []
    for method in methods:
        say(f"training {method}", started)
        trained = train(corpus, method, seed, settings)
        say(f"{method} trained in {trained.seconds:.0f} s; measuring {len(settings.conditions)} conditions", started)
        rows, pairs = evaluate(corpus, trained, settings)
        records += rows
        predictions += pairs
        times.append(f"{method} {trained.seconds:.0f} s")
        if method == methods[0]:
            save(out / "adapter", trained.model, trained.guide, task=task_description(corpus, trained, settings))
        clean = next(r for r in rows if r.condition == "clean")
        say(f"{method}: clean AUC {clean.auc:.3f}, NLL {clean.nll:.3f}, ECE {clean.ece:.3f}", started)
    path = write_report(out, records, predictions, setup=setup(corpus, settings, times, started))
    say(f"wrote {path}", started)
    first = next(r for r in records if r.method == methods[0] and r.condition == "clean")
    if first.auc < bar:
        say(f"FAILED: {methods[0]} has clean AUC {first.auc:.3f} < {bar}", started)
        return 1
    say(f"passed: {methods[0]} has clean AUC {first.auc:.3f} >= {bar}", started)
    return 0


def require_saveable(methods: Sequence[str]) -> None:
    """Raise :class:`ConfigError` if ``bayes-adapters verify`` could not serve the first method's adapter."""
    if find(methods[0]).hears:
        others = [name for name, method in METHODS.items() if not method.hears]
        raise ConfigError(
            "The demo saves the adapter of the first method for bayes-adapters verify, which reads frozen frames; "
            f"{methods[0]} adapts the speech encoder. Name one of these first: {', '.join(others)}. For example "
            f"--methods {DEMO_METHODS[0]} {methods[0]}."
        )


def setup(corpus: Corpus, settings: Settings, times: list[str], started: float) -> dict[str, str]:
    """Describe the run for the report."""
    splits = corpus.splits
    mix = ", ".join(f"{name} {share:g}" for name, share in settings.mix.items())
    return {
        "task": "does this recording say this script?",
        "data": f"English prompts, {len(splits.train)} / {len(splits.validation)} / {len(splits.test)} recordings "
        f"for training / validation / test, split seed {splits.seed}; no script in two splits",
        "text backbone": "all-MiniLM-L6-v2, frozen; adapters r = 8, α = 16 on query and value of all layers",
        "audio context": "frozen Whisper tiny.en encoder, last layer, 25 frames a second",
        "training": f"{settings.epochs} epochs, batches of {settings.batch_size}, AdamW {settings.lr:g}, "
        f"KL weight {settings.kl_weight:g} per nat, prior N(0, {settings.prior_scale:g}²); best validation NLL kept",
        "training recordings": mix,
        "distance-aware fallback": "on" if settings.reliability else "off",
        "posterior draws": str(settings.samples),
        "training time": ", ".join(times),
        "run time so far": f"{time.perf_counter() - started:.0f} s",
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {settings.device}",
        "torch": torch.__version__,
    }


def say(message: str, started: float) -> None:
    """Print a line with the seconds since the start."""
    print(f"[{time.perf_counter() - started:6.0f} s] {message}", file=sys.stderr, flush=True)


@user_errors
def main() -> int:
    """Parse the command line and run."""
    transformers.utils.logging.disable_progress_bar()  # the lines printed here say what is going on
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DEMO_METHODS),
        choices=list(METHODS),
        help="the adapter of the first is saved, and its clean AUC decides whether the demo has passed",
    )
    parser.add_argument("--short", action="store_true", help="few epochs and conditions: for continuous integration")
    arguments = parser.parse_args()
    device = str(pick_device(arguments.device))
    base = SHORT if arguments.short else Settings(conditions=CONDITIONS)
    settings = replace(base, device=device)
    methods = tuple(arguments.methods)
    if arguments.short and arguments.methods == list(DEMO_METHODS):
        methods = ("caliber-x", "lora-fusion")
    return run(arguments.out, methods, arguments.seed, settings, SHORT_BAR if arguments.short else FULL_BAR)


if __name__ == "__main__":
    raise SystemExit(main())
