"""The names, and what each needs to be built small."""

from __future__ import annotations

from typing import Any

import torch

from bayes_adapters import Batch
from examples.studies.matrix_cells import PAIR, SIZE, build_system
from examples.studies.tiny import CONTEXT, batch, make

NAMES = {
    "lora": ("LoRA", "Delta"),
    "mc-dropout": ("AdapterDropout", "MCDropout"),
    "bayeslora-2025": ("AdapterDropout", "MCDropout"),
    "bayeslora-2026": ("StochasticFactors", "RankWise"),
    "blob": ("StochasticDown", "MeanField"),
    "scalabl": ("DiagonalCore", "MeanField"),
    "polar-vbll": ("PoLAR", "Delta"),
    "c-lora": ("StochasticCore", "Contextual"),
    "fixed-e": ("StochasticCore", "MeanField"),
    "coco-lora": ("StochasticCore", "Amortised"),
    "caliber-g": ("StochasticCore", "PooledContext"),
    "caliber-x": ("StochasticCore", "CrossAttention"),
    "caliber-shared-kv": ("StochasticCore", "CrossAttention"),
    "caliber-x-fusion": ("FusionCore", "CrossAttention"),
    "cross-attention": ("StochasticCore", "CrossAttention"),
    "cross-attention-fusion": ("FusionCore", "CrossAttention"),
    "concat-lora": ("ConcatLoRA", "Delta"),
    "cola": ("CoLA", "Hypernetwork"),
    "bayesian-cola": ("CoLA", "Hypernetwork"),
    "lora-fusion": ("FusionLoRA", "Delta"),
    "wander": ("Wander", "Delta"),
    "bayesian-wander": ("Wander", "MeanField"),
}
SEVERAL = {"concat-lora", "cola", "bayesian-cola", "wander", "bayesian-wander"}
LABELS = torch.tensor([0.0, 1.0, 1.0, 0.0])


def backbone_of(name: str) -> str:
    return PAIR if name in SEVERAL else "BERT"


def small(name: str) -> tuple[Any, Any, Batch]:
    model, guide = build_system(name, make(backbone_of(name)))
    return model, guide, batch(backbone_of(name), LABELS)


def required(name: str) -> dict[str, Any]:
    """The options a system has no default for, and N."""
    reads = any(part in name for part in ("fusion", "coco-lora", "caliber", "cross-attention"))
    needs = {"context_dim": CONTEXT} if reads else {}
    return needs | ({"lengths": {"first": 2, "second": 2}} if "wander" in name else {}) | {"num_data": SIZE}
