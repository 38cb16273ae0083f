"""What 16 draws cost where only the top blocks of six are adapted: the blocks below them run once for all draws.

``python -m examples.benchmarks.frozen_prefix`` measures, in one process and in random order round by round,
predictions and a forward pass of the bare backbone on as many rows, which is what draws cost where nothing is shared.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from bayes_adapters import Batch, Bernoulli, Targets, predict
from bayes_adapters.guides import Contextual
from bayes_adapters.models import StochasticCore
from examples.benchmarks.measure import CLOCKS, Variant, interleave, markdown, median, ratio
from examples.benchmarks.workload import ALPHA, RANK, TARGETS, Backbones, Sizes, fill_up_projections, make_batch

WHOLE = "backbone, every row"


def top(blocks: int) -> str:
    """The name of the prediction with adapters in the uppermost ``blocks``."""
    return f"prediction, top {blocks} adapted"


def variants(backbones: Backbones, batch: Batch, depths: Sequence[int], draws: int) -> dict[str, Variant]:
    """Predictions with adapters in the top blocks, and the backbone on ``draws`` times the rows."""
    found = {WHOLE: Variant(partial(_forward, backbones(), batch, draws))}
    for depth in depths:
        backbone = backbones()
        number = backbone.config.num_hidden_layers
        layers = Targets(TARGETS, layers=range(number - depth, number))
        model = StochasticCore(backbone, Bernoulli(), targets=layers, rank=RANK, alpha=ALPHA)
        fill_up_projections(model)
        guide = Contextual(model)
        found[top(depth)] = Variant(partial(predict, model, guide, batch, num_samples=draws, chunk_size=draws))
    return found


@torch.no_grad()
def _forward(backbone: Any, batch: Batch, draws: int) -> torch.Tensor:
    inputs = {name: value.repeat(draws, 1) for name, value in batch.inputs.items()}
    hidden: torch.Tensor = backbone(**inputs).last_hidden_state
    return hidden


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds")
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu", help="cpu: on a busy machine")
    parser.add_argument("--quick", action="store_true", help="a tiny random backbone and two rounds: a smoke test")
    options = parser.parse_args(arguments)
    backbones = Backbones("tiny" if options.quick else "minilm-random")
    blocks = backbones().config.num_hidden_layers
    batch = make_batch(Sizes(4, 6, 5, 12) if options.quick else Sizes(), backbones().config.vocab_size)
    depths = sorted({1, (blocks + 1) // 2, blocks})
    timed = variants(backbones, batch, depths, options.draws)
    rounds, warm_up = (2, 1) if options.quick else (options.rounds, 2)
    seconds = interleave(timed, rounds=rounds, warm_up=warm_up, clock=CLOCKS[options.clock])
    rows = []
    for depth in depths:
        shared = (depth + (blocks - depth) / options.draws) / blocks
        times = f"{1e3 * median(seconds[top(depth)]):.0f}"
        rows.append([top(depth), times, str(ratio(seconds, top(depth), WHOLE)), f"{shared:.3f}"])
    print(f"{backbones.name}; {batch.size} examples, {options.draws} draws, {torch.get_num_threads()} thread(s)\n")
    print(markdown(["", "median ms", f"/ {WHOLE}", "blocks' share"], rows), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
