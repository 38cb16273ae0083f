"""Checks for a machine with a CUDA GPU and no network: agreement with the CPU, bfloat16, training, memory and time.

Exit code 0 if every check passes or there is no CUDA GPU, 1 otherwise.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from examples.benchmarks import decoder
from examples.benchmarks.agreement import Check, check_bfloat16, check_device, combinations
from examples.benchmarks.learning import check_learning
from examples.benchmarks.measure import interleave, markdown, median, ratio
from examples.benchmarks.variants import OURS, PEFT, elbo, names, training_step
from examples.benchmarks.workload import METHODS, Backbones, Sizes, make_batch


def run_checks(device: str, backbones: Backbones, shape: decoder.Shape, *, quick: bool) -> list[Check]:
    """Run every check; one that raises counts as failed, and the others still run."""
    planned: list[Any] = [(check_device, (*which, device), {}) for which in combinations()]
    planned += [(check_bfloat16, (*which, device), {}) for which in combinations()]
    planned += [(check_learning, (backbones, device), {"autocast": low, "quick": quick}) for low in (False, True)]
    planned += [(decoder.check_decoder, (system, shape, device), {}) for system in decoder.SYSTEMS]
    return [_attempt(function, *positional, **named) for function, positional, named in planned]


def _attempt(function: Any, *positional: Any, **named: Any) -> Check:
    try:
        return function(*positional, **named)
    except Exception as error:  # noqa: BLE001  (one broken check must not hide the others)
        which = ", ".join(str(p) for p in (*positional, *named.items()) if not isinstance(p, Backbones))
        return Check(f"{function.__name__}({which})", passed=False, detail=f"{type(error).__name__}: {error}")


def measure(device: str, backbones: Backbones, sizes: Sizes, *, rounds: int) -> dict[str, dict[str, Any]]:
    """Step times, ratios to PEFT (to plain LoRA where PEFT is absent) and peak memory of each method."""
    batch = make_batch(sizes, backbones().config.vocab_size, device=device)
    chosen = [name for name in names() if name in (PEFT, OURS, *(elbo(m) for m in METHODS))]
    memory = {name: _peak(name, backbones, batch) for name in chosen} if torch.device(device).type == "cuda" else {}
    steps = {name: training_step(name, backbones, batch) for name in chosen}
    seconds = interleave(steps, rounds=rounds, warm_up=3, device=device)
    base = chosen[0]
    return {
        name: {
            "milliseconds": 1e3 * median(seconds[name]),
            "base": base,
            "ratio": vars(ratio(seconds, name, base)),
            "text": [f"{1e3 * median(seconds[name]):.1f}", str(ratio(seconds, name, base))],
            "peak_mebibytes": memory.get(name),
        }
        for name in chosen
    }


def _peak(name: str, backbones: Backbones, batch: Any) -> float:
    """MiB that three steps allocate at most, weights of the backbone included."""
    device = batch.inputs["input_ids"].device
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    step = training_step(name, backbones, batch)
    for _ in range(3):
        step.run()
    return (torch.cuda.max_memory_allocated(device) - start) / 2**20


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="folder for gpu.json")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try the checks themselves")
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds of training steps")
    parser.add_argument("--quick", action="store_true", help="tiny sizes throughout")
    options = parser.parse_args(arguments)
    on_gpu = torch.device(options.device).type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        print("no CUDA GPU: skipped")
        return 0
    torch.set_float32_matmul_precision("highest")
    backbones = Backbones("tiny" if options.quick else "minilm-or-random")
    machine = torch.cuda.get_device_name(options.device) if on_gpu else "CPU (compared with itself)"
    print(f"{machine}, torch {torch.__version__}; backbone: {backbones.name}\n")

    shape = decoder.SMALL if options.quick else decoder.LARGE
    checks = run_checks(options.device, backbones, shape, quick=options.quick)
    table = markdown(["check", "", "detail"], [[c.name, "ok" if c.passed else "FAILED", c.detail] for c in checks])
    print(table)
    sizes = [Sizes(4, 6, 5, 12)] if options.quick else [Sizes(16, 32), Sizes(64, 128)]
    rounds = 2 if options.quick else options.rounds
    costs = {str(size): measure(options.device, backbones, size, rounds=rounds) for size in sizes}
    rows = [
        [name, size, *cost["text"], "-" if cost["peak_mebibytes"] is None else f"{cost['peak_mebibytes']:.0f}"]
        for size, by_name in costs.items()
        for name, cost in by_name.items()
    ]
    base = next(iter(next(iter(costs.values())).values()))["base"]
    print(markdown(["training step", "batch", "median ms", f"/ {base}", "peak MiB"], rows))
    costs["decoder"] = decoder.measure(shape, options.device, rounds=min(rounds, 5))
    heading = ["random decoder in bfloat16", "median ms", "/ its step", "peak MiB"]
    print(markdown(heading, decoder.rows(costs["decoder"])))
    failed = [check.name for check in checks if not check.passed]
    print(f"{len(checks) - len(failed)} of {len(checks)} checks passed." + "".join(f"\nFAILED: {n}" for n in failed))
    result: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "backbone": backbones.name}
    result |= {"checks": [vars(check) for check in checks], "costs": costs}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
