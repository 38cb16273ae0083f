"""The variants: one thing changed at a time, from Wander as released to a linear head that the product stands beside.

The explanations that the variants tell apart, and what each would show:

1. *Residual.* As released, the head sees the first r tokens of the first stream, and all else through the product
   alone. Then ``every-stream`` and ``beside`` are ahead of ``released``, and ``product-only`` far behind.
2. *Placement.* Then ``every-layer`` is ahead of ``every-stream``.
3. *The product of M factors* is hard to train, or heavy-tailed. Then ``pairs`` is ahead of ``beside`` more the larger M
   is, ``beside-raw`` (no normalisation) moves, and gradients of the factors fall or grow with M and depth.
4. *Gate.* It starts at 0 and holds back what is behind it. Then ``beside-gate-1`` or ``beside-gate-fast`` is ahead of
   ``beside``.
5. *Reading.* The mean over r tokens cancels what they say. Then ``beside-tokens`` is ahead of ``beside``.
6. *Size.* Then rank 2 or 32, eight terms, the released sizes or a narrow width move it, each against ``beside``.
7. *Start.* The head's evidence comes too late. Then ``beside-warm``, whose head has been trained before the gate opens,
   is ahead of ``beside``.
8. *Few people.* Then ``beside`` falls behind ``linear`` with fewer of them (``stress-half``, ``stress-quarter``).
9. *Task.* There is nothing to interact. Then ``beside`` is level with ``linear`` and with ``sum``, the same parameters
   without a product, where streams speak for themselves (``stress``), and ahead of both where only their relation
   speaks (``matched``, ``script``); ``two-layer`` says whether that takes a product or any interaction.
10. *The product adds to adapted encoders*: ``lora-beside`` against ``lora``.

Rank 8 and two terms are those of the body-signals study. Where a sum over terms is within the product, terms add no
functions; so they do in every variant but ``beside-terms-8``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from bayes_adapters import AdapterModel, Bernoulli
from bayes_adapters.heads import TwoLayerHead
from bayes_adapters.modalities.blocks import Block, Blocks
from bayes_adapters.models import ConcatLoRA, Wander
from examples.studies.wander.model import WanderBeside
from examples.studies.wander.problems import Problem

Build = Callable[[Problem, nn.ModuleDict], AdapterModel]
SIZE: dict[str, Any] = {"fusion_rank": 8, "terms": 2, "cp": "product_of_sums"}
RELEASED_SIZE: dict[str, Any] = {"fusion_rank": 16, "terms": 8, "cp": "product_of_sums"}
"""Rank and feature terms that the released code has for CMU-MOSI."""
HIDDEN = 32
"""Units of a head of two layers: about as many numbers as ``beside`` adds to a linear head."""
LORA: dict[str, Any] = {"targets": ["query", "value"], "rank": 4, "alpha": 4.0}
LORA_TEXT: dict[str, Any] = {"targets": ["query", "value"], "rank": 8, "alpha": 16.0}


@dataclass(frozen=True)
class Variant:
    """One row.

    Args:
        build: (problem, frozen encoders) → model; the guide is ``Delta``, trained without KL, as the paper's Wander is.
        encoded: whether nothing inside an encoder changes: it then runs once.
        gate: where the gate starts.
        gate_speed: its learning rate, in those of the others.
        first: what is trained in the first half of the epochs; its numbers go where this has the same ones.
    """

    build: Build
    encoded: bool = True
    gate: float = 0.0
    gate_speed: float = 1.0
    first: Build | None = None


def _concat(_: Problem, encoders: nn.ModuleDict, hidden: int | None = None, **lora: Any) -> AdapterModel:
    options: dict[str, Any] = {"targets": None} | lora | ({"head": TwoLayerHead(hidden)} if hidden else {})
    return ConcatLoRA(encoders, Bernoulli(), **options)


def _wander(problem: Problem, encoders: nn.ModuleDict, every_layer: bool = False, **size: Any) -> AdapterModel:
    options = SIZE | size | {"lengths": problem.lengths, "num_data": problem.count}
    return Wander(encoders, Bernoulli(), every_layer=every_layer, **options)


def _every_stream(problem: Problem, encoders: nn.ModuleDict, **size: Any) -> AdapterModel:
    # every stream keeps a residual where fusion follows "every layer"; an encoder that has run is one layer
    blocks = dict.fromkeys(problem.lengths, Blocks((Block(*["block"] * 8),)))
    return _wander(problem, encoders, every_layer=True, blocks=blocks, **size)


def _beside(problem: Problem, encoders: nn.ModuleDict, hidden: int | None = None, **options: Any) -> AdapterModel:
    own = SIZE | {"head": TwoLayerHead(hidden)} if hidden else SIZE
    settings = own | options | {"lengths": problem.lengths, "num_data": problem.count}
    return WanderBeside(encoders, Bernoulli(), **settings)


_LORA_HEAD = partial(_concat, hidden=256, **LORA_TEXT)

VARIANTS: dict[str, Variant] = {
    "linear": Variant(_concat),
    "two-layer": Variant(partial(_concat, hidden=HIDDEN)),
    "lora": Variant(partial(_concat, **LORA), encoded=False),
    "lora-two-layer": Variant(_LORA_HEAD, encoded=False),
    "released": Variant(_wander),
    "released-gate-1": Variant(_wander, gate=1.0),
    "released-size": Variant(partial(_wander, **RELEASED_SIZE)),
    "product-only": Variant(partial(_beside, beside=False)),
    "every-stream": Variant(_every_stream),
    "every-layer": Variant(partial(_wander, every_layer=True), encoded=False),
    "beside": Variant(_beside),
    "beside-raw": Variant(partial(_beside, normalise=False)),
    "beside-gate-1": Variant(_beside, gate=1.0),
    "beside-gate-fast": Variant(_beside, gate_speed=10.0),
    "beside-tokens": Variant(partial(_beside, all_tokens=True)),
    "beside-r2": Variant(partial(_beside, fusion_rank=2)),
    "beside-r32": Variant(partial(_beside, fusion_rank=32)),
    "beside-terms-8": Variant(partial(_beside, terms=8, cp="sum_of_products")),
    "beside-released-size": Variant(partial(_beside, **RELEASED_SIZE)),
    "beside-width-16": Variant(partial(_beside, width=16)),
    "beside-warm": Variant(_beside, first=_concat),
    "pairs": Variant(partial(_beside, combine="pairs")),
    "sum": Variant(partial(_beside, combine="sum")),
    "lora-beside": Variant(partial(_beside, **LORA), encoded=False),
    "lora-beside-warm": Variant(partial(_beside, **LORA), encoded=False, first=partial(_concat, **LORA)),
    "two-layer-beside": Variant(partial(_beside, hidden=HIDDEN)),
    "lora-two-layer-beside": Variant(partial(_beside, hidden=256, **LORA_TEXT), encoded=False),
}
"""Name → variant. The released code's third size, 12 token terms, must equal the feature terms here."""

_FEWER = ("linear", "two-layer", "every-stream", "beside", "pairs", "sum")
_RELATION = ("linear", "two-layer", "released", "product-only", "every-stream", "beside", "pairs", "sum", "beside-r32")
TASKS: dict[str, tuple[str, ...]] = {
    "stress": tuple(name for name in VARIANTS if "two-layer-" not in name and name != "lora-two-layer"),
    "stress-half": _FEWER,
    "stress-quarter": _FEWER,
    "stress-2": _FEWER,
    "stress-7": _FEWER,
    "matched": (*_RELATION, "every-layer", "beside-gate-1", "beside-tokens", "two-layer-beside"),
    "matched-2": tuple(name for name in _RELATION if name != "pairs"),
    "script": (
        *(name for name in _RELATION if name != "pairs"),
        *("beside-gate-1", "beside-tokens", "beside-released-size", "two-layer-beside"),
        *("lora-two-layer", "lora-two-layer-beside"),
    ),
}
"""Task → its variants; with two streams ``pairs`` is ``beside``."""


def rows() -> Iterator[str]:
    """Yield ``task.variant`` of every row."""
    return (f"{task}.{variant}" for task, own in TASKS.items() for variant in own)
