"""What a likelihood of masks refuses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bayes_adapters.conditions import refuse_where
from bayes_adapters.distributions import IGNORED
from bayes_adapters.errors import ConfigError, DataError


def checked_pair(name: str, value: Any) -> tuple[int, int]:
    """Return ``value``, given as ``name``, as (height, width); raise :class:`ConfigError` unless it is that."""
    given = list(value) if isinstance(value, list | tuple) else []
    if len(given) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in given):
        raise ConfigError(
            f"{name} must be two positive whole numbers, height and width, such as (14, 14); got {value!r}."
        )
    return given[0], given[1]


def require_finer(grid: tuple[int, int], size: tuple[int, int], detail: int) -> None:
    """Raise :class:`ConfigError` where a mask has fewer pixels than cells along a side."""
    if size[0] < grid[0] * detail or size[1] < grid[1] * detail:
        raise ConfigError(
            f"size={size} has fewer pixels than the {grid[0] * detail} × {grid[1] * detail} cells of grid={grid} and "
            f"detail={detail}, so that some cells would be in no pixel. size is (H, W) of the masks and grid (h, w) of "
            "the patches; take detail=1, or larger masks."
        )


def require_patches(tokens: int, grid: tuple[int, int], skip: int) -> None:
    """Raise :class:`ConfigError` unless a backbone returned as many tokens as there are patches and special tokens."""
    if tokens != skip + grid[0] * grid[1]:
        raise ConfigError(
            f"Masks(grid={grid}, skip={skip}) reads {skip + grid[0] * grid[1]} tokens, and the backbone returns "
            f"{tokens}. grid is (image height / patch, image width / patch); of a ViT skip is 1, its class token, and "
            "4 more with registers; Swin has none, and halves its grid between stages."
        )


def require_masks(targets: Tensor, size: tuple[int, int], classes: int) -> None:
    """Refuse what are no class numbers of pixels, int64 of shape (B, H, W), or −100."""
    if targets.dim() != 3 or tuple(targets.shape[1:]) != size or targets.is_floating_point():
        fix = (
            "Resize class numbers by F.interpolate(masks[:, None].float(), size, mode='nearest-exact')[:, 0].long(), "
            "or build Masks(…, size=) of theirs"
        )
        if targets.dim() == 4:
            fix = "Take masks[:, 0], or argmax(1) of one-hot channels"
        elif targets.is_floating_point():
            fix = "Take (masks > 0.5).long()"
        raise DataError(
            f"Masks must be int64 of shape (B, {size[0]}, {size[1]}); got {targets.dtype} of shape "
            f"{tuple(targets.shape)}. {fix}."
        )
    most = max(classes - 1, 1)
    bad = (targets.long() != IGNORED) & ((targets < 0) | (targets > most))
    refuse_where(
        bad,
        lambda: DataError(
            f"Pixels of masks must be class numbers 0 … {most}, or {IGNORED} without a label; got "
            f"{targets[bad].unique()[:8].tolist()} at (row, y, x) {bad.nonzero()[:3].tolist()}. A picture's 0 and 255 "
            "are (masks > 0).long(); a border of 255 becomes -100 by masks.masked_fill(masks == 255, -100)."
        ),
    )
