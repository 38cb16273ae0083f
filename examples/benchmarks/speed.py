"""Time and peak memory of a training step beside PEFT's LoRA, what Pyro adds, and the cost of 16 folded draws.

All variants run in one process, in random order round by round; ratios are paired within a round.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bayes_adapters import Batch, predict
from examples.benchmarks.measure import CLOCKS, Ratio, Variant, interleave, markdown, median, ratio
from examples.benchmarks.memory import peak_in_own_process
from examples.benchmarks.variants import (
    OURS,
    PEFT,
    PeftLoRA,
    check_hand_written,
    elbo,
    hand,
    names,
    svi,
    training_step,
)
from examples.benchmarks.workload import METHODS, Backbones, Sizes, build, make_batch

DRAWS = 16
PYRO_TARGET = 1.05
"""What a step with the library may take relative to the same computation without Pyro."""


def measure_training(
    backbones: Backbones, batch: Batch, *, rounds: int, warm_up: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each round for every variant of :func:`names`."""
    steps = {name: training_step(name, backbones, batch) for name in names()}
    device = batch.inputs["input_ids"].device
    return interleave(steps, rounds=rounds, warm_up=warm_up, device=device, clock=clock)


def measure_prediction(
    backbones: Backbones,
    batch: Batch,
    *,
    draws: int,
    rounds: int,
    warm_up: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each round for ``draws`` folded draws, as many passes of one draw, and one deterministic pass."""
    device, width = batch.inputs["input_ids"].device, batch.context["audio"].values.shape[-1]
    variants: dict[str, Variant] = {}
    if PEFT in names():
        peft = PeftLoRA(backbones()).to(device).eval()
        variants[PEFT] = Variant(lambda: _without_gradients(peft, batch))
    for method in METHODS:
        model, guide = build(method, backbones().to(device), width)
        guide.to(device)
        parts = (model, guide, batch)
        variants |= {
            f"{method}: folded": Variant(partial(predict, *parts, num_samples=draws)),
            f"{method}: loop": Variant(partial(predict, *parts, num_samples=draws, chunk_size=1)),
            f"{method}: mean": Variant(partial(predict, *parts, mean_only=True)),
        }
    return interleave(variants, rounds=rounds, warm_up=warm_up, device=device, clock=clock)


@torch.no_grad()
def _without_gradients(peft: PeftLoRA, batch: Batch) -> torch.Tensor:
    return peft.logits(batch).sigmoid()


def training_table(seconds: dict[str, list[float]], mebibytes: dict[str, float]) -> tuple[str, dict[str, Any]]:
    """The table of training steps, and the same as data."""
    base = PEFT if PEFT in seconds else OURS
    rows, data = [], {}
    for name, times in seconds.items():
        method = name.split(":")[0]
        to_base = ratio(seconds, name, base)
        to_hand = ratio(seconds, name, hand(method)) if name in (elbo(method), svi(method)) else None
        memory = f"{mebibytes[name]:.0f}" if name in mebibytes else "-"
        rows.append(
            [name, f"{1e3 * median(times):.1f}", str(to_base), "-" if to_hand is None else str(to_hand), memory]
        )
        data[name] = {"seconds": times, "ratio_to_base": vars(to_base), "mebibytes": mebibytes.get(name)}
        data[name]["ratio_to_hand_written"] = None if to_hand is None else vars(to_hand)
    header = ["training step", "median ms", f"/ {base}", "/ hand-written", "peak MiB added"]
    return markdown(header, rows), {"base": base, "variants": data}


def prediction_table(by_batch: dict[int, dict[str, list[float]]]) -> tuple[str, dict[str, Any]]:
    """The table of predictions, and the same as data."""
    rows, data = [], {}
    for size, seconds in by_batch.items():
        data[str(size)] = seconds
        for method in METHODS:
            folded, loop, mean = (f"{method}: {kind}" for kind in ("folded", "loop", "mean"))
            times = [f"{1e3 * median(seconds[name]):.0f}" for name in (folded, loop, mean)]
            ratios = [ratio(seconds, folded, loop), ratio(seconds, folded, mean)]
            to_peft = str(ratio(seconds, folded, PEFT)) if PEFT in seconds else "-"
            rows.append([method, str(size), *times, *(str(r) for r in ratios), to_peft])
    header = ["prediction", "B", "folded ms", "loop ms", "mean ms", "folded / loop", "folded / mean", "folded / PEFT"]
    return markdown(header, rows), data


def verdict(seconds: dict[str, list[float]]) -> str:
    """One line per method: whether what Pyro adds is within the target."""
    lines = []
    for method in METHODS:
        found: Ratio = ratio(seconds, elbo(method), hand(method))
        word = "within" if found.median <= PYRO_TARGET else "above"
        lines.append(
            f"{method}: the library's step takes {found} of the hand-written one: {word} the target {PYRO_TARGET}."
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder for speed.json and speed.md")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds of training steps")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall", help="cpu: on a busy machine, CPU only")
    parser.add_argument("--quick", action="store_true", help="a tiny random backbone and few rounds: a smoke test")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory (one process a variant)")
    options = parser.parse_args(arguments)
    if options.clock == "cpu" and options.device != "cpu":
        parser.error("--clock cpu does not see what a GPU does; use --clock wall.")
    clock = CLOCKS[options.clock]
    kind = "tiny" if options.quick else "minilm"
    sizes = Sizes(4, 6, 5, 12) if options.quick else Sizes()
    rounds, warm_up = (2, 1) if options.quick else (options.rounds, 5)
    predictions, few = (2, 1) if options.quick else (max(3, options.rounds // 4), 2)

    backbones = Backbones(kind)
    batch = make_batch(sizes, backbones().config.vocab_size, device=options.device)
    checks = {method: check_hand_written(method, backbones, batch) for method in METHODS}
    seconds = measure_training(backbones, batch, rounds=rounds, warm_up=warm_up, clock=clock)
    mebibytes = {}
    if not options.no_memory:
        mebibytes = {name: peak_in_own_process(name, kind, sizes, options.device) for name in seconds}
    by_batch = {
        size: measure_prediction(backbones, batch[:size], draws=DRAWS, rounds=predictions, warm_up=few, clock=clock)
        for size in (1, sizes.batch)
    }
    steps, training = training_table(seconds, mebibytes)
    draws, prediction = prediction_table(by_batch)
    where = (
        f"{backbones.name}; {sizes}; {options.device}, {torch.get_num_threads()} thread(s), {options.clock} clock, "
        f"torch {torch.__version__}, Python {platform.python_version()}; medians of {rounds} (training) and "
        f"{predictions} (prediction) interleaved rounds, in brackets the 95 % bootstrap interval of the paired ratio; "
        f"{DRAWS} draws."
    )
    agreement = "; ".join(f"{m}: loss {a:.0e}, gradients {b:.0e}" for m, (a, b) in checks.items())
    agreement = f"Hand-written against the library, same noise, largest relative difference: {agreement}."
    report = "\n\n".join([where, agreement, steps.strip(), verdict(seconds).strip(), draws.strip()]) + "\n"
    result = {"setting": where, "agreement": checks, "training": training, "prediction_seconds": prediction}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "speed.json").write_text(json.dumps(result, indent=1) + "\n")
    (options.out / "speed.md").write_text(report)
    print(report, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
