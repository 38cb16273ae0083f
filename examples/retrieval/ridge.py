"""The baseline without a gradient: a ridge regression from what is heard to what is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from examples.retrieval.data import Split, Task

TEMPERATURE = 0.07
"""Of the cosines: where the trained ones start."""
PENALTIES = tuple(10.0**power for power in range(-1, 6))


def means(split: Split, rows: Sequence[int], condition: str) -> Float[Tensor, "n d"]:
    """Return the mean frame of recordings."""
    return split.frames(rows, [condition] * len(rows)).mean()


def states(task: Task, split: Split, rows: Sequence[int]) -> Float[Tensor, "n d"]:
    """Return the mean state of scripts."""
    side = task.text_side(split, rows, True)
    weight = side["text.token_mask"].float()
    return (side["text.signal"] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)


def ridge(task: Task) -> tuple[tuple[Tensor, ...], float]:
    """Return W, means and scales of ``z(ū) ≈ W z(v̄)``, and the validation NLL of its penalty.

    ``W = Uᵀ V (VᵀV + λ I)⁻¹`` with the standardised means of clean training recordings V and scripts U, and λ of
    :data:`PENALTIES` of the lowest validation NLL, of ``softmax(cos / .07)`` over the validation scripts.
    """
    split, held_out = (task.splits[part] for part in ("train", "validation"))
    rows = list(range(len(split.keys)))
    v, u = means(split, rows, "clean").double(), states(task, split, rows).double()
    moments = [(x.mean(0), x.std(0).clamp_min(1e-6)) for x in (u, v)]
    a, b = ((x - m) / s for x, (m, s) in zip((u, v), moments, strict=True))
    gram, cross, eye = b.T @ b, a.T @ b, torch.eye(b.shape[1], dtype=b.dtype)
    best: tuple[tuple[Tensor, ...], float] = ((), math.inf)
    for penalty in PENALTIES:
        weight = torch.linalg.solve(gram + penalty * eye, cross.T).T
        found = (weight, *moments[0], *moments[1])
        heard = means(held_out, list(range(len(held_out.keys))), "clean")
        scores = ridge_scores(found, states(task, held_out, held_out.scripts), heard)
        nll = float(F.cross_entropy(scores, held_out.groups))
        best = min(best, (found, nll), key=lambda one: one[1])
    return best


def ridge_scores(
    weight: tuple[Tensor, ...], scripts: Float[Tensor, "M d"], heard: Float[Tensor, "Q e"]
) -> Float[Tensor, "Q M"]:
    """Return ``cos(z(ū), W z(v̄)) / .07`` of every recording with every script."""
    w, text_mean, text_scale, mean, scale = weight
    said = F.normalize((scripts.double() - text_mean) / text_scale, dim=-1)
    guessed = F.normalize((heard.double() - mean) / scale @ w.T, dim=-1)
    return (guessed @ said.T / TEMPERATURE).float()
