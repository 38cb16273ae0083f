"""Two small encoders, of text and of audio, and a batch for both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bayes_adapters import Batch
from tests.helpers import bert, whisper


def encoders(text: int = 2, audio: int = 2) -> nn.ModuleDict:
    return nn.ModuleDict({"text": bert(text), "audio": whisper(audio)})


def batch(size: int = 4, seed: int = 0, **more: Tensor) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.ones(size, 7, dtype=torch.long)
    mask[1, 3:] = 0
    inputs = {
        "text.input_ids": torch.randint(0, 40, (size, 7), generator=rng),
        "text.attention_mask": mask,
        "audio.input_features": torch.randn(size, 8, 20, generator=rng),
    }
    return Batch(inputs | more, torch.randint(0, 2, (size,), generator=rng).float())
