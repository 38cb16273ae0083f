"""What a linear probe reads off the frozen patch tokens: which kind a patch shows, in which colour.

python -m examples.grounding.probe
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTModel

from bayes_adapters.backbones import vision_frames
from bayes_adapters.errors import DataError
from examples.grounding.data import Grounding, Sizes, as_input, splits
from examples.grounding.kinds import HELD_OUT, SEEN
from examples.grounding.pictures import COLOURS
from examples.grounding.pretrain import vision_encoder
from examples.grounding.scenes import Thing
from examples.grounding.vision import VisionSettings, in_patches


def patch_labels(data: Grounding, number: Callable[[Thing], int], patch_size: int) -> Int[Tensor, "M P"]:
    """Return a label of each patch of each scene, shape (M, P), int64.

    Args:
        data: M scenes.
        number: of a thing, from 1 on; 0 is the ground's.
        patch_size: in pixels.
    """
    most = max(len(things) for things in data.things)
    table = torch.zeros(len(data.things), most + 1, dtype=torch.int64)
    for row, things in enumerate(data.things):
        table[row, 1 : len(things) + 1] = torch.tensor([number(thing) for thing in things])
    shown = table.gather(1, data.owner.long().flatten(1)).reshape(data.owner.shape)
    return in_patches(shown, patch_size)


def fit(x: Float[Tensor, "N d"], y: Int[Tensor, " N"], classes: int, l2: float = 1e-2) -> Float[Tensor, "e classes"]:
    """Return the weights ``(XᵀX + l2 N I)⁻¹ Xᵀ Y`` of a least-squares classifier; X has a column of ones at its end.

    Args:
        x: standardised features.
        y: from 0 to classes - 1.
        classes: how many.
        l2: weight of the ridge, per example.

    Raises:
        DataError: no example.
    """
    if not len(x):
        raise DataError("A probe needs examples; got none. Does no patch show a thing?")
    full = F.pad(x.double(), (0, 1), value=1.0)
    ridge = l2 * len(x) * torch.eye(full.shape[1], dtype=torch.float64)
    return torch.linalg.solve(full.mT @ full + ridge, full.mT @ F.one_hot(y, classes).double())


def probed(train: tuple[Tensor, Tensor], tests: dict[str, tuple[Tensor, Tensor]], classes: int) -> dict[str, float]:
    """Fit on (tokens (N, d), labels (N,)) and return the share that is right in each test."""
    mean, scale = train[0].mean(0), train[0].std(0).clamp_min(1e-6)
    weight = fit((train[0] - mean) / scale, train[1], classes)
    scores = {name: F.pad(((x - mean) / scale).double(), (0, 1), value=1.0) @ weight for name, (x, _) in tests.items()}
    return {name: float((scores[name].argmax(-1) == y).float().mean()) for name, (_, y) in tests.items()}


def _pairs(states: Tensor, labels: Tensor, scenes: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Return the tokens of patches that show a thing, and their labels from 0 on."""
    some, known = states[scenes].flatten(0, 1), labels[scenes].flatten()
    return some[known > 0], known[known > 0] - 1


def report(vit: ViTModel | None, data: dict[str, Grounding], patch_size: int) -> dict[str, float]:
    """Probe tokens, or the patches' own pixels where ``vit`` is None, for kinds and colours.

    Kinds are fitted on the training split; those held out on one half of their scenes, and tested on the other.
    """

    def encoded(split: str) -> Tensor:
        pixels = as_input(data[split].scenes)
        if vit is None:
            return F.unfold(pixels, patch_size, stride=patch_size).mT
        return vision_frames(vit, pixels).values[:, 1:]

    states = {split: encoded(split) for split in ("train", "test", "kinds", "drawer")}
    seen = {
        split: patch_labels(data[split], lambda t: SEEN.index(t.kind) + 1, patch_size)
        for split in ("train", "test", "drawer")
    }
    names: Sequence[str] = list(COLOURS)
    colour = {
        split: patch_labels(data[split], lambda t: 0 if t.colour is None else names.index(t.colour) + 1, patch_size)
        for split in states
    }
    held = patch_labels(data["kinds"], lambda t: HELD_OUT.index(t.kind) + 1, patch_size)
    half = len(held) // 2
    kinds = {f"kind, {split}": _pairs(states[split], seen[split]) for split in ("test", "drawer")}
    colours = {f"colour, {split}": _pairs(states[split], colour[split]) for split in ("test", "kinds", "drawer")}
    fresh = {"kind, held out": _pairs(states["kinds"], held, slice(half, None))}
    return {
        **probed(_pairs(states["train"], seen["train"]), kinds, len(SEEN)),
        **probed(_pairs(states["kinds"], held, slice(half)), fresh, len(HELD_OUT)),
        **probed(_pairs(states["train"], colour["train"]), colours, len(COLOURS)),
    }


def main() -> None:
    """Probe the pre-trained transformer, an untrained one, and the pixels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=VisionSettings.steps, help="of the pre-training")
    settings = VisionSettings(steps=parser.parse_args().steps)
    data = splits(0, Sizes(600, 1, 200, 300, 200))
    torch.manual_seed(0)
    rows = {"pixels": None, "untrained": settings.transformer(), "pre-trained": vision_encoder(settings)}
    found = {name: report(vit, data, settings.patch_size) for name, vit in rows.items()}
    for what in found["pixels"]:
        print(f"{what:18}" + "  ".join(f"{name} {found[name][what]:.3f}" for name in found))


if __name__ == "__main__":
    main()
