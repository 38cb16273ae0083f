"""What every family costs beside `MeanField`: time of a step and of ten draws, memory, numbers trained and stored.

    python -m examples.benchmarks.cost

All run in one process on copies of one backbone, in random order round by round; a ratio is the median over rounds of
the family's CPU time over that of `MeanField` in the same round. Memory is what PyTorch's allocator adds at most during
one step, and during one prediction: activations, gradients, draws; what is held before it is not counted. Records go to
``results/cost.json``, the table between the markers ``cost`` of ``docs/which-when.md``.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from bayes_adapters import ELBO, Batch, predict, save
from examples.benchmarks.families import BASE, CLASSES, Family, families
from examples.benchmarks.measure import CLOCKS, Variant, interleave, median, ratio
from examples.benchmarks.workload import KL_WEIGHT, Sizes, make_batch
from examples.studies.comparison import markdown, rewrite_file

DRAWS = 10
GROUPS = ("guide", "structure", "head", "after training")
HEAD = ["", "a step", f"{DRAWS} draws", "memory, step", "memory, draws", "trained", "stored", "once, in steps"]
_VOCABULARY = 500


def small_backbone(width: int = 128, layers: int = 4) -> nn.Module:
    """Return a BERT with random weights and no dropout, the same at every call."""
    from transformers import BertConfig, BertModel

    sizes = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * width,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(vocab_size=_VOCABULARY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
        return BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)


def batch_of(sizes: Sizes) -> Batch:
    """Return random tokens and frames with one of three labels for each example."""
    batch = make_batch(sizes, _VOCABULARY)
    return Batch(batch.inputs, torch.arange(sizes.batch) % CLASSES, batch.context)


def step_of(family: Family, model: Any, guide: Any, batch: Batch) -> Callable[[], object]:
    """Return one training step: gradients to zero, loss, backward, optimiser."""
    loss_of = ELBO(model, guide, kl_weight=KL_WEIGHT)
    trained = [p for p in loss_of.parameters() if p.requires_grad]
    make = family.optimizer
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if make is None else make(model, guide)
    loss_of.train()

    def step() -> None:
        optimizer.zero_grad()
        loss_of(batch).backward()
        optimizer.step()

    return step


def peak(run: Callable[[], object]) -> int:
    """Return by how many bytes the tensors that are held grow at most while ``run`` runs, on the CPU."""
    only = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=only, profile_memory=True, acc_events=True) as found:
        run()
    held = most = 0
    events: Any = found.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def stored(model: Any, guide: Any) -> int:
    """Return how many numbers ``save`` keeps."""
    with tempfile.TemporaryDirectory() as folder:
        save(folder, model, guide)
        count = 0
        for path in Path(folder).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                count += sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 -- no mapping
    return count


def measure(
    wanted: dict[str, Family], *, sizes: Sizes, width: int, layers: int, rounds: int, warm_up: int, clock: str
) -> dict[str, Any]:
    """Return name → what was measured; see the module.

    Args:
        wanted: name → family, with :data:`BASE`.
        sizes: of the batch.
        width: of the backbone.
        layers: of the backbone.
        rounds: measured rounds.
        warm_up: rounds before them.
        clock: a name of :data:`CLOCKS`.
    """
    batch, now = batch_of(sizes), CLOCKS[clock]
    steps: dict[str, Variant] = {}
    draws: dict[str, Variant] = {}
    found: dict[str, dict[str, Any]] = {}
    for name, family in wanted.items():
        torch.manual_seed(0)
        backbone = small_backbone(width, layers)
        started = now()
        model, guide = family.build(backbone, batch)
        seconds_to_build = now() - started
        row: dict[str, Any] = {
            "group": family.group,
            "once_seconds": seconds_to_build if family.once and family.timed else None,
        }
        if not family.once:
            steps[name] = Variant(step_of(family, model, guide, batch))
            row["trained"] = sum(p.numel() for part in (model, guide) for p in part.parameters() if p.requires_grad)
        options = {"num_samples": DRAWS, **(family.predict or {})}
        draws[name] = Variant(partial(_predict, model, guide, batch, options))
        row["stored"] = stored(model, guide)
        found[name] = row
    seconds = {
        "step": interleave(steps, rounds=rounds, warm_up=warm_up, clock=now),
        "draws": interleave(draws, rounds=rounds, warm_up=warm_up, clock=now),
    }
    memory = {"step": {n: peak(v.run) for n, v in steps.items()}, "draws": {n: peak(v.run) for n, v in draws.items()}}
    for name, row in found.items():
        for what, times in seconds.items():
            row[what] = vars(ratio(times, name, BASE)) if name in times else None
            row[f"{what}_memory"] = memory[what][name] / memory[what][BASE] if name in times else None
        once = row.pop("once_seconds")
        row["once"] = None if once is None else once / median(seconds["step"][BASE])
    base = {what: 1e3 * median(times[BASE]) for what, times in seconds.items()}
    mebibytes = {what: values[BASE] / 2**20 for what, values in memory.items()}
    return {"families": found, "milliseconds": base, "mebibytes": mebibytes}


def _predict(model: Any, guide: Any, batch: Batch, options: dict[str, Any]) -> object:
    return predict(model, guide, batch, **options)


def table(record: dict[str, Any]) -> list[str]:
    """Return the lines of the table, a heading for every group."""
    rows = []
    for group in GROUPS:
        own = {name: row for name, row in record["families"].items() if row["group"] == group}
        rows += [[f"**{group}**", *[""] * (len(HEAD) - 1)]] if own else []
        for name, row in own.items():
            times = ["–" if row[what] is None else f"{row[what]['median']:.2f}" for what in ("step", "draws")]
            memory = [
                "–" if row[f"{what}_memory"] is None else f"{row[f'{what}_memory']:.2f}" for what in ("step", "draws")
            ]
            counts = [f"{row[what]:,}" if what in row else "–" for what in ("trained", "stored")]
            rows.append([name, *times, *memory, *counts, "–" if row["once"] is None else f"{row['once']:.0f}"])
    return markdown(HEAD, rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; see ``--help``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="measured rounds")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="cpu", help="cpu: on a busy machine")
    parser.add_argument("--quick", action="store_true", help="a tiny backbone and two rounds: a smoke test")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="families whose names hold one of these")
    parser.add_argument("--records", type=Path, default=Path("results/cost.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/which-when.md"))
    parser.add_argument("--tables", action="store_true", help="write the page from the records, and measure nothing")
    options = parser.parse_args(arguments)
    if not options.tables:
        wanted = families()
        if options.only:
            wanted = {n: f for n, f in wanted.items() if n == BASE or any(word in n for word in options.only)}
        sizes, width, layers = (Sizes(4, 6, 5), 16, 1) if options.quick else (Sizes(16, 24, 20), 128, 4)
        rounds, warm_up = (2, 1) if options.quick else (options.rounds, 2)
        started = time.process_time()
        found = measure(
            wanted, sizes=sizes, width=width, layers=layers, rounds=rounds, warm_up=warm_up, clock=options.clock
        )
        found["setting"] = {
            "backbone": f"BERT of {layers} layers of width {width}, random weights",
            "batch": str(sizes),
            "draws": DRAWS,
            "rounds": rounds,
            "clock": options.clock,
            "threads": torch.get_num_threads(),
            "cpu_seconds": round(time.process_time() - started),
            "versions": f"torch {torch.__version__}, Python {platform.python_version()}",
        }
        options.records.parent.mkdir(parents=True, exist_ok=True)
        options.records.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    record = json.loads(options.records.read_text(encoding="utf-8"))
    rewrite_file(options.page, {"cost": table(record)})
    print("\n".join(table(record)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
