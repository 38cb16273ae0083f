"""What metrics of boxes and masks refuse, and their arguments as they compute with them: float64, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from bayes_adapters.distributions import IGNORED
from bayes_adapters.errors import DataError


def checked_boxes(predicted: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return boxes, each (N, 4)."""
    a, b = predicted.detach().cpu().double(), targets.detach().cpu().double()
    if a.dim() != 2 or a.shape[1] != 4 or a.shape != b.shape or not len(a):
        raise DataError(
            f"Boxes must be (N, 4), as many predicted as meant; got {tuple(a.shape)} and {tuple(b.shape)}. Is the "
            "dimension of draws still there? Average over it."
        )
    if not bool((a.isfinite() & b.isfinite()).all()):
        raise DataError("Boxes must be finite. Examples without a box are left out: boxes[~boxes.isnan().any(1)].")
    if bool((a[:, 2:] < 0).any() | (b[:, 2:] < 0).any()):
        raise DataError(
            "Boxes are (cx, cy, w, h), and a width or height is negative. Corners become such boxes by "
            "bayes_adapters.data.boxes.from_corners."
        )
    return a, b


def checked_masks(predicted: Tensor, targets: Tensor, positive: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return P(y = 1), which pixels are meant, and which are labelled, each (N, H, W)."""
    probs, y = predicted.detach().cpu().double(), targets.detach().cpu()
    if probs.dim() != 3 or probs.shape != y.shape or not len(probs):
        raise DataError(
            f"Masks must be (N, H, W), predicted as meant; got {tuple(probs.shape)} and {tuple(y.shape)}. Of C classes "
            "take one, probs[..., c] with positive=c; one mask is mask[None]."
        )
    if not bool(((probs >= -1e-6) & (probs <= 1 + 1e-6)).all()):
        raise DataError(f"Masks must be P(y = 1); got {probs.min():.3g} to {probs.max():.3g}. Logits need a sigmoid.")
    known = y != IGNORED
    return probs, (y == positive) & known, known


def checked_overlaps(overlaps: Tensor) -> Tensor:
    """Return IoU, shape (N,)."""
    found = overlaps.detach().cpu().double()
    if found.dim() != 1 or not len(found) or not bool(found.isfinite().all()):
        raise DataError(
            f"IoU must be finite, of shape (N,), N >= 1; got {tuple(found.shape)}. box_iou and mask_iou return it."
        )
    return found


def checked_maps(uncertainty: Tensor, correct: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return uncertainty, correctness and which pixels count as 0 and 1, each (N, H, W)."""
    u, right = uncertainty.detach().cpu().double(), correct.detach().cpu().double()
    counted = torch.ones_like(u) if known is None else known.detach().cpu().double()
    if u.dim() != 3 or u.shape != right.shape or u.shape != counted.shape or not len(u):
        raise DataError(
            f"Maps must be (N, H, W), all of one shape; got {tuple(u.shape)}, {tuple(right.shape)} and "
            f"{tuple(counted.shape)}. One image is map[None]."
        )
    if not bool(u.isfinite().all()) or not bool(((right == 0) | (right == 1)).all()):
        raise DataError(
            "uncertainty must be finite, and correct bool or 0/1: whether the most probable class is right."
        )
    return u, right, counted


def checked_errors(uncertainty: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
    """Return uncertainties and errors, each (N,)."""
    e = error.detach().cpu().double()
    if uncertainty.shape != e.shape or not e.numel():
        raise DataError(
            f"uncertainty and error must have one shape, with something in it; got {tuple(uncertainty.shape)} and "
            f"{tuple(e.shape)}."
        )
    if not bool((e.isfinite() & (e >= 0)).all()):
        raise DataError(
            f"Errors must be finite and not negative; they go from {e.min():.3g} to {e.max():.3g}. Of a difference "
            "take .abs()."
        )
    return uncertainty.detach().flatten(), e.flatten()


def require_patch(patch: tuple[int, int], accurate: float) -> None:
    """Raise :class:`DataError` unless a patch has pixels, and the least accuracy is a share."""
    two = isinstance(patch, tuple | list) and len(patch) == 2 and all(isinstance(side, int) for side in patch)
    if not two or min(patch) < 1 or not 0 <= accurate <= 1:
        raise DataError(
            f"patch is (height, width) in pixels and accurate a share from 0 to 1; got {patch} and {accurate}."
        )
