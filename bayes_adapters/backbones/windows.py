"""Blocks that attend within windows, whose layers there see (rows · windows, T, d), an example's windows in a row."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

GRID = "input_dimensions"
"""The argument by which such a block is told (height, width) of its image of tokens."""


def window_side(block: nn.Module) -> int | None:
    """Return w if ``block`` cuts the image of its input (rows, H·W, d) into windows of w × w tokens, else None.

    It shows in the block's structure, not in its class's name: ``window_size`` is a whole number and ``forward`` takes
    ``input_dimensions`` (Swin, Swin V2 and what is built like them).
    """
    side = getattr(block, "window_size", None)
    return side if isinstance(side, int) and GRID in inspect.signature(block.forward).parameters else None


def windowed_layers(backbone: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """Return path of a layer → path of the block with windows that it is in; layers in no such block are left out."""
    blocks = [path for path, module in backbone.named_modules() if window_side(module) is not None]
    return {layer: block for layer in layers for block in blocks if layer.startswith(f"{block}.")}


@contextmanager
def counted_tokens(backbone: nn.Module, blocks: Iterable[str], counts: MutableMapping[str, int]) -> Iterator[None]:
    """While the context lasts, note in ``counts`` how many tokens each example has at the input of each block.

    Args:
        backbone: holds the blocks; it has hooks as long as the context lasts.
        blocks: paths of blocks with windows.
        counts: block → H·W, written when the block is called.
    """

    def note(block: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if args and isinstance(args[0], Tensor):
                counts[block] = args[0].shape[1]

        return hook

    handles: list[RemovableHandle] = [
        backbone.get_submodule(block).register_forward_pre_hook(note(block)) for block in sorted(set(blocks))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
