"""Sequences, factors and rules to fuse with, and what tests do with the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayes_adapters import Frames
from bayes_adapters.models.multiplicative.factors import (
    CP,
    FusionFactors,
    FusionRule,
    ModalityFactors,
    Placement,
    Tokens,
)
from bayes_adapters.models.multiplicative.module import CPFusion

LENGTHS = {"text": 5, "audio": 7, "vision": 4}
RULES = [
    FusionRule(placement, cp, tokens, normalise)
    for placement in Placement
    for cp in CP
    for tokens in Tokens
    for normalise in (False, True)
]


def name_of(rule: FusionRule) -> str:
    return f"{rule.placement}-{rule.cp}-{rule.tokens}-{'rms' if rule.normalise else 'plain'}"


def full(values: Tensor) -> Frames:
    return Frames(values, torch.ones(values.shape[:2], dtype=torch.bool))


def inputs(lengths: Mapping[str, int] = LENGTHS, rows: int = 3, width: int = 6, **kind: Any) -> dict[str, Frames]:
    return {name: full(torch.randn(rows, length, width, **kind)) for name, length in lengths.items()}


def drawn(
    lengths: Mapping[str, int] = LENGTHS,
    *lead: int,
    width: int = 6,
    rank: int = 3,
    terms: int = 2,
    gate: int = 0,
    null: bool = True,
) -> FusionFactors:
    """Random float64 factors of ``lead`` draws."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, dtype=torch.float64)

    modalities = {
        name: ModalityFactors(
            normal(rank, width),
            normal(rank),
            normal(terms, rank, width),
            normal(terms, length, rank),
            normal(width) if null else None,
        )
        for name, length in lengths.items()
    }
    return FusionFactors(modalities, normal(gate, width) if gate else None)


def gate_rows(rule: FusionRule, count: int = 3) -> int:
    return 1 if rule.placement is Placement.POOLED else count


def tensors(out: Any) -> dict[str, Tensor]:
    """The values of either placement's output."""
    return {"": out.values} if isinstance(out, Frames) else {name: frames.values for name, frames in out.items()}


def same(left: Any, right: Any) -> bool:
    a, b = tensors(left), tensors(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train(fusion: CPFusion, x: Mapping[str, Frames], steps: int) -> list[set[str]]:
    """Adam on a target that asks for a change; the names of the parameters with a non-zero gradient at each step."""
    optimiser = torch.optim.Adam(fusion.parameters(), lr=1e-2)
    target = {name: torch.randn_like(value) for name, value in tensors(fusion(x)).items()}
    moved: list[set[str]] = []
    for _ in range(steps):
        optimiser.zero_grad()
        sum((v - target[k]).square().mean() for k, v in tensors(fusion(x)).items()).backward()  # type: ignore[union-attr]
        moved.append({k for k, p in fusion.named_parameters() if p.grad is not None and bool(p.grad.abs().max() > 0)})
        optimiser.step()
    return moved
