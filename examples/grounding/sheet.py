"""Draw scenes with boxes, masks and expressions on one sheet, to look at.

python -m examples.grounding.sheet --out sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from examples.grounding.data import Grounding, Sizes, splits

_COLOURS = ("#d40000", "#0044dd", "#008800", "#aa00aa")
_ZOOM = 2
_LINE = 13


def sheet(data: Grounding, scenes: int, columns: int = 4) -> Image.Image:
    """Draw the first scenes: the target of each expression framed in the colour of its words, its mask's edge dotted.

    Args:
        data: any split.
        scenes: how many.
        columns: side by side.
    """
    side = data.scenes.shape[-1] * _ZOOM
    most = max(int((data.scene == number).sum()) for number in range(scenes))
    height = side + most * _LINE + 8
    page = Image.new("RGB", (columns * (side + 8), -(-scenes // columns) * height), "white")
    draw = ImageDraw.Draw(page)
    boxes, texts = data.boxes, data.texts
    for number in range(scenes):
        left, top = number % columns * (side + 8), number // columns * height
        picture = Image.fromarray(data.scenes[number].permute(1, 2, 0).numpy(), "RGB")
        page.paste(picture.resize((side, side), Image.Resampling.NEAREST), (left, top))
        for line, row in enumerate((data.scene == number).nonzero().flatten().tolist()):
            colour = _COLOURS[line % len(_COLOURS)]
            x1, y1, x2, y2 = (boxes[row] * side).tolist()
            draw.rectangle((left + x1 - line, top + y1 - line, left + x2 + line, top + y2 + line), outline=colour)
            for x, y in _edge(data.masks(torch.tensor([row]))[0].numpy()):
                draw.point((left + x * _ZOOM, top + y * _ZOOM), fill=colour)
            draw.text((left, top + side + line * _LINE), texts[row], fill=colour)
    return page


def _edge(mask: np.ndarray) -> list[tuple[int, int]]:
    """Return (x, y) of the mask's pixels with a neighbour outside."""
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rows, columns = np.nonzero(mask & ~inner)
    return list(zip(columns.tolist(), rows.tolist(), strict=True))


def main() -> None:
    """Draw one sheet per split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/grounding/sheet.png"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=12)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    few = arguments.scenes
    for name, data in splits(arguments.seed, Sizes(few, few, few, few, few)).items():
        path = arguments.out.with_stem(f"{arguments.out.stem}-{name}")
        sheet(data, few).save(path)
        print(path)


if __name__ == "__main__":
    main()
