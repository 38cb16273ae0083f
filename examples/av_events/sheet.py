"""Draw clips and sounding scenes on a sheet, to look at.

python -m examples.av_events.sheet --data fsdd8k.npz --out sheet.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from examples.av_events.data import Sizes, Split, splits
from examples.av_events.digits import mnist
from examples.av_events.events import BACKGROUND, SEGMENTS
from examples.av_events.frames import FRAME
from examples.av_events.recordings import load

_ZOOM = 2
_BIG = FRAME * _ZOOM
_WAVE, _LINE = 24, 26


def sheet(split: Split, rows: int = 4) -> Image.Image:
    """Draw some clips, one per row: frames, waveforms, what is heard and seen, the label; then sounding scenes.

    Args:
        split: any.
        rows: of clips; at most as many rows of ten sounding scenes follow.
    """
    height = _BIG + _WAVE + _LINE + 6
    clips, sounding = split.clips, split.sounding
    count = min(rows * SEGMENTS, len(sounding))
    page = Image.new("RGB", (SEGMENTS * (_BIG + 4), (rows - (-count // SEGMENTS)) * height), "white")
    labels = clips.labels
    waves = clips.sounds.waves(torch.arange(rows))
    for row in range(rows):
        for second in range(SEGMENTS):
            label = int(labels[row, second])
            words = f"heard {_name(clips.heard[row, second])}, seen {_name(clips.seen[row, second])}"
            mark = "background" if label == BACKGROUND else f"event {label}"
            _cell(page, (second * (_BIG + 4), row * height), clips.frames[row, second], waves[row, second], words, mark)
    heard = sounding.sounds.waves(torch.arange(count))
    masks = sounding.masks(torch.arange(count))
    for one in range(count):
        corner = one % SEGMENTS * (_BIG + 4), (rows + one // SEGMENTS) * height
        frame = torch.where(
            masks[one], torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None], sounding.frames[one]
        )
        _cell(
            page, corner, frame, heard[one], f"{sounding.speakers[one]} says", f"{int(sounding.digits[one])} (in red)"
        )
    return page


def _name(digit: Tensor) -> str:
    return "-" if int(digit) < 0 else str(int(digit))


def _cell(page: Image.Image, corner: tuple[int, int], frame: Tensor, wave: Tensor, words: str, mark: str) -> None:
    left, top = corner
    picture = Image.fromarray(frame.permute(1, 2, 0).numpy(), "RGB")
    page.paste(picture.resize((_BIG, _BIG), Image.Resampling.NEAREST), corner)
    draw = ImageDraw.Draw(page)
    peaks = np.abs(wave.numpy()[: len(wave) // _BIG * _BIG]).reshape(_BIG, -1).max(1).clip(0, 1) ** 0.5
    middle = top + _BIG + _WAVE // 2
    for x, peak in enumerate(peaks.tolist()):
        draw.line((left + x, middle - peak * _WAVE / 2, left + x, middle + peak * _WAVE / 2), fill="#224488")
    draw.text((left, top + _BIG + _WAVE), words, fill="black")
    draw.text((left, top + _BIG + _WAVE + 12), mark, fill="#888888" if mark == "background" else "#c00000")


def main() -> None:
    """Draw the training split's."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the recordings, as examples/av_events/recordings.py describes them")
    parser.add_argument("--out", type=Path, default=Path("runs/av_events/sheet.png"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    made = splits(load(arguments.data), mnist(), arguments.seed, Sizes(4, 1, 1, 20, 1, 1))
    sheet(made["train"]).save(arguments.out)
    print(arguments.out)


if __name__ == "__main__":
    main()
