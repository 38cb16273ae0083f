"""A study of made shapes and tiny random encoders."""

from __future__ import annotations

import copy
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from examples.grounding.data import Grounding, make
from examples.grounding.experiment import CONDITIONS
from examples.grounding.pictures import shapes
from examples.grounding.scenes import Style
from examples.grounding.training import Settings, Study
from examples.grounding.vision import VisionSettings
from tests.helpers import VOCAB, bert

SIDE = 64
SETTINGS = Settings(frozen_epochs=2, epochs=1, batch_size=8, samples=2, hidden=8)


class Words:
    """A tokenizer: each different word is a number; padded with 0."""

    def __call__(self, texts: list[str], return_tensors: str, padding: bool) -> dict[str, torch.Tensor]:
        rows = [torch.tensor([1 + sum(map(ord, word)) % (VOCAB - 1) for word in text.split()]) for text in texts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


@cache
def encoders() -> nn.ModuleDict:
    torch.manual_seed(0)
    vit = VisionSettings(SIDE, 16, width=16, layers=2, heads=2).transformer()
    return nn.ModuleDict({"vision": vit.eval(), "text": bert()}).requires_grad_(False)


@cache
def scenes() -> dict[str, Grounding]:
    counts = {"train": 5, "validation": 4} | dict.fromkeys(CONDITIONS, 3)
    names = sorted(shapes().images)
    return {split: make(shapes(), names, count, split, style=Style(SIDE, 10, 20)) for split, count in counts.items()}


def study(folder: Path | None = None, seed: int = 0) -> Study:
    return Study(scenes(), partial(copy.deepcopy, encoders()), Words(), seed, SETTINGS, folder)
