"""Peak memory of one training step, measured in a process of its own.

On a CPU it is the growth of the process's peak resident memory over the loaded backbone and batch, which includes
gradients, optimiser state and what the allocator keeps; on a CUDA GPU it is what ``max_memory_allocated`` adds.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from examples.benchmarks.variants import names, training_step
from examples.benchmarks.workload import Backbones, Sizes, make_batch

_STEPS = 3


def peak_in_own_process(name: str, kind: str, sizes: Sizes, device: str) -> float:
    """Return the peak memory in MiB that ``_STEPS`` training steps of ``name`` add, from a fresh process.

    Raises:
        RuntimeError: the process failed; its error output is in the message.
    """
    command = [sys.executable, "-m", "examples.benchmarks.memory", name, "--backbone", kind, "--device", device]
    command += ["--sizes", *(str(n) for n in (sizes.batch, sizes.tokens, sizes.frames, sizes.width))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Measuring the memory of {name!r} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["mebibytes"])


def growth(name: str, kind: str, sizes: Sizes, device: str) -> float:
    """Measure in this process, which must not have done anything memory-hungry before."""
    backbone = Backbones(kind)().to(device)
    batch = make_batch(sizes, backbone.config.vocab_size, device=device)
    for parameter in backbone.parameters():
        parameter.abs().max()  # weights are mapped from the file: read them all, or their pages count as growth
    step = training_step(name, lambda: backbone, batch)
    start = _peak(device)
    for _ in range(_STEPS):
        with step.setting():
            step.run()
    return _peak(device) - start


def _peak(device: str) -> float:
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        # Linux hands ru_maxrss down from parent to child, so a large parent would hide the child's own peak.
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if peak is None:
            raise RuntimeError(f"{status} names no VmHWM, the peak resident memory; leave it out with --no-memory.")
        return int(peak[1]) / 2**10
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=names())
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--sizes", nargs=4, type=int, required=True)
    options = parser.parse_args()
    grown = growth(options.name, options.backbone, Sizes(*options.sizes), options.device)
    print(json.dumps({"mebibytes": grown}))


if __name__ == "__main__":
    main()
