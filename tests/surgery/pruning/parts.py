"""An adapter some of whose ranks are weak."""

from __future__ import annotations

from typing import Any

import torch

from tests.rank_wise.parts import LAYERS
from tests.rank_wise.parts import pair as fresh


def key(part: str, layer: int) -> str:
    return f"{part}-{LAYERS[layer].replace('.', '-')}"


def pair(rank: int = 3, weak: tuple[tuple[int, int], ...] = ((0, 1), (2, 0), (2, 1), (2, 2)), **options: Any) -> Any:
    """A model and guide whose ranks ``weak``, as (layer, rank), have small means: their scores are high."""
    model, guide = fresh(rank, num_data=22, **options)
    with torch.no_grad():
        for layer, i in weak:
            guide.loc[key("A", layer)][0, i].mul_(1e-3)
            guide.loc[key("B", layer)][0, :, i].mul_(1e-3)
    return model, guide
