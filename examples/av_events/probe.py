"""What a linear probe reads off the frozen tokens: the digit that a patch shows, and the one that a second says.

python -m examples.av_events.probe --data fsdd8k.npz
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bayes_adapters.backbones import SpeechEncoder, vision_frames
from examples.av_events.data import Sizes, Split, splits
from examples.av_events.digits import mnist
from examples.av_events.encoders import encoders
from examples.av_events.pretrain import SETTINGS
from examples.av_events.recordings import load
from examples.av_events.sounding import Sounding
from examples.grounding.data import as_input
from examples.grounding.probe import probed
from examples.grounding.vision import in_patches


def seen(vit: nn.Module, data: Sounding, patch_size: int) -> tuple[Tensor, Tensor]:
    """Return the tokens (K, d) of the patches that show a digit, and which."""
    table = torch.zeros(len(data), 5, dtype=torch.int64)
    for row, digits in enumerate(data.shown):
        table[row, 1 : len(digits) + 1] = torch.tensor(digits) + 1
    shown = table.gather(1, data.owner.long().flatten(1)).reshape(data.owner.shape)
    labels = in_patches(shown, patch_size).flatten()
    tokens = vision_frames(vit, as_input(data.frames)).values[:, 1:].flatten(0, 1)
    return tokens[labels > 0], labels[labels > 0] - 1


def heard(speech: SpeechEncoder, data: Sounding, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """Return the mean over each second's frames (N, d), and the digit that is said."""
    rows = torch.arange(len(data)).split(batch_size)
    return torch.cat([speech(list(data.sounds.waves(some))).mean() for some in rows]), data.digits


def report(made: Mapping[str, Split], vision: nn.Module, speech: SpeechEncoder, patch_size: int) -> dict[str, float]:
    """Fit both probes on the training split, and return the shares that are right in the test split."""
    train, test = made["train"].sounding, made["test"].sounding
    return {
        **probed(seen(vision, train, patch_size), {"digit seen, per patch": seen(vision, test, patch_size)}, 10),
        **probed(heard(speech, train), {"digit heard, by an unseen speaker": heard(speech, test)}, 10),
    }


def main() -> None:
    """Probe both encoders on the first fold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the recordings, as examples/av_events/recordings.py describes them")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = splits(load(arguments.data), mnist(), arguments.seed, Sizes(1, 1, 1, 400, 1, 150))
    own, speech = encoders()
    for what, right in report(made, own["vision"], speech, SETTINGS.patch_size).items():
        print(f"{what:36}{right:.3f}")


if __name__ == "__main__":
    main()
