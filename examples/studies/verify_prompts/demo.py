"""The demo: fetch, encode, train, evaluate, report. One command, one folder.

``python -m examples.studies.verify_prompts.demo --out runs/demo``
"""

from __future__ import annotations

import argparse
import os
import platform
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
from examples.studies.verify_prompts import kept
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.experiment import Settings, evaluate, task_description, train, training_steps
from examples.studies.verify_prompts.markdown import count
from examples.studies.verify_prompts.methods import METHODS, find
from examples.studies.verify_prompts.predictions import Prediction
from examples.studies.verify_prompts.report import CONDITIONS, write_report
from examples.studies.verify_prompts.stages import Stages

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
    stages = Stages(2 * len(methods) + 3)
    out.mkdir(parents=True, exist_ok=True)
    with stages.stage("fetch models and prompts into the cache, and check them") as advance:
        corpus = Corpus.load()
        advance(1)
    (out / "splits.json").write_text(corpus.splits.to_json() + "\n")
    stages.say(
        f"{len(corpus.prompts)} recordings; device {settings.device}, {count(torch.get_num_threads(), 'thread')}"
    )
    parts = corpus.parts(settings.mix, settings.conditions)
    absent = sum(store.absent(language, condition) for store, language, condition in parts)
    if absent:
        stages.say("the next stage is long and comes once: later runs read the encoded recordings from the cache")
    with stages.stage("encode plain and noisy recordings with Whisper", absent, "recordings") as advance:
        for store, language, condition in parts:
            store.encode(language, condition, advance=advance)
    records: list[Record] = []
    predictions: list[Prediction] = []
    times: list[str] = []
    for method in methods:
        with stages.stage(f"train {method}", training_steps(corpus, settings), "steps") as advance:
            trained = train(corpus, method, seed, settings, advance=advance)
        times.append(f"{method} {trained.seconds:.0f} s")
        if method == methods[0]:
            save(
                out / "adapter",
                trained.model,
                trained.guide,
                task=task_description(corpus, trained, settings),
                calibration=kept.fitted(corpus, trained, settings),
                pair_densities=kept.pair_densities(corpus, trained.model),
            )
            stages.say(
                f"saved {out / 'adapter'}, for: bayes-adapters verify RECORDING SCRIPT --adapter {out / 'adapter'}"
            )
        with stages.stage(f"measure {method} on unseen scripts", len(settings.conditions), "conditions") as advance:
            rows, pairs = evaluate(corpus, trained, settings, advance=advance)
        records += rows
        predictions += pairs
        clean = next(r for r in rows if r.condition == "clean")
        stages.say(f"{method}: clean AUC {clean.auc:.3f}, NLL {clean.nll:.3f}, ECE {clean.ece:.3f}")
    with stages.stage("write the report") as advance:
        path = write_report(out, records, predictions, setup=setup(corpus, settings, times, stages.seconds))
        advance(1)
    stages.say(f"wrote {path}")
    first = next(r for r in records if r.method == methods[0] and r.condition == "clean")
    if first.auc < bar:
        stages.say(f"FAILED: {methods[0]} has clean AUC {first.auc:.3f} < {bar}")
        return 1
    stages.say(f"passed: {methods[0]} has clean AUC {first.auc:.3f} >= {bar}")
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


def setup(corpus: Corpus, settings: Settings, times: list[str], seconds: float) -> dict[str, str]:
    """Describe the run for the report; ``seconds`` is how long it has taken so far."""
    splits = corpus.splits
    mix = ", ".join(f"{name} {share:g}" for name, share in settings.mix.items())
    return {
        "task": "does this recording say this script?",
        "data": f"English prompts, {len(splits.train)} / {len(splits.validation)} / {len(splits.test)} recordings "
        f"for training / validation / test, split seed {splits.seed}; no script in two splits",
        "text backbone": "all-MiniLM-L6-v2, frozen; adapters r = 8, α = 16 on query and value of all layers",
        "audio context": "frozen Whisper tiny.en encoder, last layer, 25 frames per second",
        "training": f"{settings.epochs} epochs, batches of {settings.batch_size}, AdamW {settings.lr:g}, "
        f"KL weight {settings.kl_weight:g} per nat, prior N(0, {settings.prior_scale:g}²); best validation NLL kept",
        "training recordings": mix,
        "distance-aware fallback": "on" if settings.reliability else "off",
        "posterior draws": str(settings.samples),
        "training time": ", ".join(times),
        "run time so far": f"{seconds:.0f} s",
        "machine": f"{platform.machine()}, {count(torch.get_num_threads(), 'thread')}, {settings.device}",
        "torch": torch.__version__,
    }


def free_threads(most: int) -> int:
    """Return how many threads can run at once, 1 to ``most``: cores that other processes keep busy are left out.

    Threads of one operation wait for each other; where two share a core, a step takes several times as long.
    """
    if not hasattr(os, "getloadavg"):
        return most
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(most, round(cores - os.getloadavg()[0])))


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
    torch.set_num_threads(free_threads(torch.get_num_threads()))
    base = SHORT if arguments.short else Settings(conditions=CONDITIONS)
    settings = replace(base, device=device)
    methods = tuple(arguments.methods)
    if arguments.short and arguments.methods == list(DEMO_METHODS):
        methods = ("caliber-x", "lora-fusion")
    return run(arguments.out, methods, arguments.seed, settings, SHORT_BAR if arguments.short else FULL_BAR)


if __name__ == "__main__":
    raise SystemExit(main())
