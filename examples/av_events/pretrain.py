"""Pre-train the vision transformer of the frames: to name the digit in each patch, without any sound.

python -m examples.av_events.pretrain
"""

from __future__ import annotations

import argparse
import random
import time
from functools import partial

import numpy as np
import torch
from transformers import ViTModel

from examples.av_events.data import PARTS
from examples.av_events.digits import Written, mnist
from examples.av_events.frames import FRAME, draw_frame
from examples.grounding.vision import Labelled, VisionSettings, pretrained

SETTINGS = VisionSettings(image_size=FRAME, patch_size=8, width=128, layers=4, heads=4, steps=4000)
"""Four layers, as the audio encoder has: Whisper tiny."""


def draw(step: int, *, written: Written, settings: VisionSettings) -> Labelled:
    """Draw the batch of a step: frames of one to four digits; it depends on it, the seed and ``written`` alone."""
    scenes, shown = [], []
    for row in range(settings.batch_size):
        rng = random.Random(f"{settings.seed}/{step}/{row}")
        digits = rng.sample(range(10), rng.randint(1, 4))
        scene = draw_frame(rng, written, digits)
        scenes.append(scene.pixels)
        shown.append(np.array([0, *(digit + 1 for digit in digits)])[scene.owner])
    names = torch.from_numpy(np.stack(shown))
    return Labelled(torch.from_numpy(np.stack(scenes)), names, torch.zeros_like(names))


def vision_encoder(settings: VisionSettings = SETTINGS) -> ViTModel:
    """Return the frozen transformer, which is trained the first time, on the training parts of MNIST alone.

    Raises:
        MissingResourceError: MNIST is not here and cannot be fetched.
    """
    source = partial(draw, written=mnist().part(0, PARTS, 3), settings=settings)
    return pretrained("digits", source, torch.eye(11)[:, 1:] * 10**0.5, 1, settings)


def main() -> None:
    """Train it, or find it in the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(parser.parse_args().threads)
    begun = time.process_time()
    weights = sum(p.numel() for p in vision_encoder().parameters())
    print(f"{weights / 1e6:.2f} M weights, {time.process_time() - begun:.0f} s of CPU")


if __name__ == "__main__":
    main()
