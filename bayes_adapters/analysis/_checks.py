"""What metrics refuse, and their arguments as they compute with them: float64, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_adapters.errors import DataError


def checked_classes(probs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Check and return class probabilities (N, C) float64 and targets (N,) int64, on the CPU."""
    p, y = probs.detach().cpu().double(), targets.detach().cpu()
    if p.dim() not in (1, 2) or y.shape != p.shape[:1] or not len(p) or (p.dim() == 2 and p.shape[1] < 2):
        raise DataError(
            "probs must be P(y=1) of shape (N,) or class probabilities (N, C >= 2) and targets (N,), N >= 1; got "
            f"{tuple(probs.shape)} and {tuple(targets.shape)}. Is the sample dimension still there? Average over it."
        )
    if not bool(((p >= -1e-6) & (p <= 1 + 1e-6)).all()):
        raise DataError(
            f"probs must lie in [0, 1]; got values from {p.min():.3g} to {p.max():.3g}. Logits need sigmoid or softmax "
            "first; log-probabilities are only for nll(..., log=True)."
        )
    if p.dim() == 2 and not bool(((p.sum(-1) - 1).abs() <= 0.02).all()):
        raise DataError("Each row of probs must sum to 1. Independent labels are scored one by one, each as (N,).")
    p = p.clamp(0, 1)
    p = torch.stack([1 - p, p], -1) if p.dim() == 1 else p
    if not bool(((y == y.long()) & (y >= 0) & (y < p.shape[1])).all()):
        raise DataError(f"targets must be class numbers 0 to {p.shape[1] - 1}; got {torch.unique(y).tolist()[:8]}.")
    return p, y.long()


def checked_confidence(probs: Tensor, targets: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    if bins < 1:
        raise DataError(f"bins must be at least 1 (default 15); got {bins}.")
    p, y = checked_classes(probs, targets)
    return p.amax(-1).clamp(max=1 - 2**-53), p.argmax(-1) == y


def checked_scores(score: Tensor, error: Tensor, first: str, second: str) -> tuple[Tensor, Tensor]:
    s, e = score.detach().cpu().double(), error.detach().cpu().double()
    if s.dim() != 1 or s.shape != e.shape or not len(s):
        raise DataError(f"{first} and {second} must both be (N,), N >= 1; got {tuple(s.shape)} and {tuple(e.shape)}.")
    if bool(s.isnan().any() | e.isnan().any()):
        raise DataError(f"{first} and {second} must not be NaN. Did a sample overflow before the average?")
    return s, e
