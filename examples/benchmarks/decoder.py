"""A decoder as people fine-tune it, random weights in bfloat16: steps with gradient checkpointing, prediction, text.

The shape is that of Llama 3.2 1B on a GPU, and a few layers elsewhere. Times are medians of interleaved rounds; memory
is what ``torch.cuda.max_memory_allocated`` adds to the weights.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Batch, predict
from bayes_adapters.generation import generate
from bayes_adapters.heads import LanguageModelHead
from bayes_adapters.likelihoods import NextToken
from bayes_adapters.systems import build
from examples.benchmarks.agreement import Check
from examples.benchmarks.measure import Variant, interleave, median, ratio
from examples.benchmarks.workload import checkpoint_blocks

SYSTEMS = ("lora", "blob", "c-lora")
TOLERANCE = 1e-6
"""Largest relative difference that gradient checkpointing may make to a loss."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the decoder and of what it reads and writes.

    Args:
        width, inner, layers, heads, shared, vocabulary: of the Llama; ``shared`` heads have keys and values.
        examples, tokens: of a step's batch.
        samples: draws of a prediction.
        written: tokens of a text.
    """

    width: int
    inner: int
    layers: int
    heads: int
    shared: int
    vocabulary: int
    examples: int
    tokens: int
    samples: int
    written: int


LARGE = Shape(2048, 8192, 16, 32, 8, 128_256, 4, 1024, 16, 64)
SMALL = Shape(32, 64, 2, 4, 2, 50, 2, 12, 3, 4)


def pair(system: str, shape: Shape, device: str) -> tuple[AdapterModel, AdapterGuide]:
    """Return a system on a random decoder whose weights are bfloat16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.shared,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.tokens + shape.written,
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    with torch.device(device):
        backbone = LlamaForCausalLM(config).to(torch.bfloat16)
    options: dict[str, Any] = {"targets": ["q_proj", "v_proj"], "rank": 8, "head": LanguageModelHead()}
    model, guide = build(system, backbone, NextToken(shape.vocabulary), num_data=1000, **options)
    return model, guide.to(device)


def texts(shape: Shape, device: str) -> Batch:
    """Return random texts that are their own labels."""
    ids = torch.randint(1, shape.vocabulary, (shape.examples, shape.tokens), device=device)
    return Batch({"input_ids": ids}, ids)


def check_decoder(system: str, shape: Shape, device: str) -> Check:
    """Whether gradient checkpointing leaves the loss and every gradient as they are."""
    model, guide = pair(system, shape, device)
    elbo, batch = ELBO(model, guide).train(), texts(shape, device)
    found: list[list[Tensor]] = []
    for on in (False, True):
        checkpoint_blocks(model.backbone, on=on)
        elbo.zero_grad()
        torch.manual_seed(1)
        loss = elbo(batch)
        loss.backward()
        gradients = [p.grad for p in elbo.parameters() if p.grad is not None]
        found.append([loss.detach().float(), *(gradient.float().clone() for gradient in gradients)])
    worst = max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-12)) for a, b in zip(*found, strict=True))
    return Check(f"decoder, {system}: gradient checkpointing", worst <= TOLERANCE, f"largest difference {worst:.1e}")


def measure(shape: Shape, device: str, *, rounds: int) -> dict[str, dict[str, Any]]:
    """Return milliseconds, ratio to plain LoRA's step and peak memory of steps, predictions and texts."""
    batch, found = texts(shape, device), dict[str, dict[str, Any]]()
    prompts = {"input_ids": batch.inputs["input_ids"][:, : max(1, shape.tokens // 8)]}
    for system in SYSTEMS:
        model, guide = pair(system, shape, device)
        elbo = ELBO(model, guide).train()
        optimizer = torch.optim.AdamW([p for p in elbo.parameters() if p.requires_grad], lr=1e-4)
        runs: dict[str, Callable[[], object]] = {
            "step": _step(elbo, optimizer, batch, False),
            "step, checkpointed": _step(elbo, optimizer, batch, True),
            f"predict, S = {shape.samples}": partial(predict, model, guide, batch, num_samples=shape.samples),
            f"text, S = {shape.samples}": partial(
                generate, model, guide, prompts, num_samples=shape.samples, max_new_tokens=shape.written
            ),
        }
        peaks = {name: _peak(run, device) for name, run in runs.items()}
        seconds = interleave({n: Variant(run) for n, run in runs.items()}, rounds=rounds, warm_up=1, device=device)
        for name in runs:
            cost = {"milliseconds": 1e3 * median(seconds[name]), "ratio": str(ratio(seconds, name, "step"))}
            found[f"{system}: {name}"] = cost | {"peak_mebibytes": peaks[name]}
        del model, guide, elbo, optimizer, runs
    return found


def rows(costs: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Return the lines of a table of :func:`measure`."""
    return [
        [
            name,
            f"{cost['milliseconds']:.1f}",
            cost["ratio"],
            "-" if cost["peak_mebibytes"] is None else f"{cost['peak_mebibytes']:.0f}",
        ]
        for name, cost in costs.items()
    ]


def _step(elbo: ELBO, optimizer: torch.optim.Optimizer, batch: Batch, on: bool) -> Callable[[], object]:
    def run() -> None:
        checkpoint_blocks(elbo.model.backbone, on=on)
        optimizer.zero_grad()
        elbo(batch).backward()
        optimizer.step()

    return run


def _peak(run: Callable[[], object], device: str) -> float | None:
    """MiB that a run allocates at most, beside what is there; None on a CPU."""
    if torch.device(device).type != "cuda":
        run()
        return None
    gc.collect()
    torch.cuda.reset_peak_memory_stats(device)
    start = torch.cuda.memory_allocated(device)
    run()
    return (torch.cuda.max_memory_allocated(device) - start) / 2**20
