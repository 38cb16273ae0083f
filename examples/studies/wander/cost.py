"""What a training step costs with 2, 5 and 7 streams: time beside a linear head's, memory, numbers trained.

    python -m examples.studies.wander.cost --rounds 20

Streams of 30 frames, 64 wide, 64 windows a step, as body signals have; encoders have run, so what is measured is the
fusion alone. Times are processor times of interleaved rounds as ratios to ``linear`` with as many streams; memory is
what autograd keeps for the backward pass, which repeats to the byte. Written to ``results/wander_cost.json``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn

from bayes_adapters import ELBO, Batch
from bayes_adapters.guides import Delta
from examples.benchmarks.measure import Variant as Timed
from examples.benchmarks.measure import interleave
from examples.benchmarks.saved_bytes import saved_bytes
from examples.studies.body_signals.adapters import Encoded
from examples.studies.wander.problems import Part, Problem
from examples.studies.wander.variants import TASKS, VARIANTS

STREAMS, WIDTH, FRAMES, WINDOWS = (2, 5, 7), 64, 30, 64
BASE = "linear"


@dataclass(frozen=True)
class Random(Problem):
    """Streams of random numbers.

    Args:
        streams: M.
    """

    streams: int = field(kw_only=True)

    @property
    def lengths(self) -> Mapping[str, int]:
        return {f"stream{number}": FRAMES for number in range(self.streams)}

    @property
    def count(self) -> int:
        return WINDOWS

    @property
    def conditions(self) -> Sequence[str]:
        return (self.plain,)

    def encoders(self, encoded: bool) -> nn.ModuleDict:
        return nn.ModuleDict({name: Encoded(WIDTH) for name in self.lengths})

    def training(self, encoded: bool, seed: int) -> Iterable[Batch]:
        values = {f"{name}.signal": torch.randn(WINDOWS, FRAMES, WIDTH) for name in self.lengths}
        return [Batch(values, torch.arange(WINDOWS).remainder(2).float())]

    def validation(self, encoded: bool) -> list[Batch]:
        return list(self.training(encoded, 0))

    def test(self, encoded: bool, condition: str) -> Part:
        return Part(self.validation(encoded), [(str(row), str(row)) for row in range(WINDOWS)])


def measure(streams: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return variant → ``ratio`` of a step's time, ``milliseconds``, ``mebibytes`` and ``parameters``."""
    torch.manual_seed(0)
    problem = Random("random", streams=streams)
    batch = problem.validation(True)[0]
    losses: dict[str, ELBO] = {}
    for name in TASKS["stress-2"]:
        model = VARIANTS[name].build(problem, problem.encoders(True))
        losses[name] = ELBO(model, Delta(model), kl_weight=0.0)
    steps = {name: Timed(partial(_step, loss, batch)) for name, loss in losses.items()}
    seconds = interleave(steps, rounds=rounds, warm_up=2, clock=time.process_time)
    return {
        name: {
            "ratio": median(own / base for own, base in zip(seconds[name], seconds[BASE], strict=True)),
            "milliseconds": 1e3 * median(seconds[name]),
            "mebibytes": saved_bytes(loss, batch) / 2**20,
            "parameters": float(sum(p.numel() for p in loss.parameters() if p.requires_grad)),
        }
        for name, loss in losses.items()
    }


def _step(loss: ELBO, batch: Batch) -> None:
    for parameter in loss.parameters():
        parameter.grad = None
    loss(batch).backward()


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("results/wander_cost.json"))
    arguments = parser.parse_args()
    found = {f"{m}.{name}": row for m in STREAMS for name, row in measure(m, arguments.rounds).items()}
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    for name, row in found.items():
        print(name, {key: round(value, 2) for key, value in row.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
