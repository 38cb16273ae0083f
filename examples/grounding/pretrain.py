"""Pre-train the vision transformer on scenes of some 840 little pictures, without expressions and boxes.

Half of what is in them is of the kinds that expressions name; those held out, and the other drawer's pictures, are not
among them.

python -m examples.grounding.pretrain
"""

from __future__ import annotations

import argparse
import random
import time
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from PIL import ImageOps
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTModel

from examples.grounding.kinds import KINDS, SEEN
from examples.grounding.pictures import COLOURS, Pictures, unnamed
from examples.grounding.scenes import Style, compose
from examples.grounding.vision import Labelled, VisionSettings, pretrained

_OFTEN = frozenset(KINDS[word] for word in SEEN)


def draw(step: int, *, pictures: Pictures, settings: VisionSettings) -> Labelled:
    """Draw the batch of a step: scenes of four to seven of the pictures, in half of them tinted.

    Args:
        step: the batch depends on it, the settings' seed and the pictures alone.
        pictures: name 1 is the first of them.
        settings: size and number of the scenes.
    """
    names = list(pictures.images)
    often = [name for name in names if name in _OFTEN] or names
    number = {name: i for i, name in enumerate(names, 1)}
    tint_of = {colour: i for i, colour in enumerate(COLOURS, 1)}
    side = settings.image_size
    style = Style(side, max(4, round(side * 0.16)), round(side * 0.36))
    scenes, shown, tints = [], [], []
    for row in range(settings.batch_size):
        rng = random.Random(f"{settings.seed}/{step}/{row}")
        tinted = rng.random() < 0.5
        chosen = [rng.choice(often if rng.random() < 0.5 else names) for _ in range(rng.randint(4, 7))]
        wanted = [(name, rng.choice(list(COLOURS)) if tinted else None) for name in chosen]
        scene = compose(rng, pictures, wanted, style)
        scenes.append(scene.pixels)
        of_owner = np.array([0, *(number[name] for name, _ in wanted)])
        shown.append(of_owner[scene.owner])
        tint_owner = np.array([0, *(0 if colour is None else tint_of[colour] for _, colour in wanted)])
        tints.append(tint_owner[scene.owner])
    return Labelled(*(torch.from_numpy(np.stack(part)) for part in (scenes, shown, tints)))


def outlines(pictures: Pictures, count: int = 32) -> Float[Tensor, "names count"]:
    """Return what the pictures look like without their colours: the ``count`` main components of 12 x 12 thumbnails.

    A thumbnail is brightness and opacity, and the mean of a picture and its mirror image, as scenes have both.

    Args:
        pictures: N of them.
        count: at most N.

    Returns:
        Shape (N + 1, count), float32, of mean square 1; the ground's row, the first, is 0.
    """
    small = [ImageOps.pad(image, (12, 12), color=(0, 0, 0, 0)) for image in pictures.images.values()]
    values = np.stack([np.asarray(image.convert("LA")).astype(np.float64) / 255 for image in small])
    values[..., 0] *= values[..., 1]
    flat = torch.from_numpy((values + values[:, :, ::-1]).reshape(len(small), -1))
    left, sizes, _ = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    codes = (left * sizes)[:, :count]
    return F.pad(codes / codes.square().mean().sqrt(), (0, 0, 1, 0)).float()


def vision_encoder(settings: VisionSettings | None = None) -> ViTModel:
    """Return the frozen transformer, which is trained the first time: some ten minutes of one core.

    Raises:
        MissingResourceError: the emoji are not here and cannot be fetched.
    """
    settings = VisionSettings() if settings is None else settings
    pictures = unnamed()
    source = partial(draw, pictures=pictures, settings=settings)
    return pretrained("emoji", source, outlines(pictures), len(COLOURS) + 1, settings)


def main() -> None:
    """Train it, or find it in the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=VisionSettings.steps)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    begun = time.process_time()
    vit = vision_encoder(VisionSettings(steps=arguments.steps))
    weights = sum(p.numel() for p in vit.parameters())
    print(f"{weights / 1e6:.2f} M weights, {time.process_time() - begun:.0f} s of CPU")


if __name__ == "__main__":
    main()
