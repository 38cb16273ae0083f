"""Games of known value, and systems of several encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bayes_adapters import Batch, Bernoulli, Frames
from bayes_adapters.analysis.attribution import attribute
from bayes_adapters.guides import Delta
from bayes_adapters.models import CoLA, StochasticCore
from tests.helpers import bert, fill_B, whisper

PARTS = ("total", "aleatoric", "epistemic")


class Game(StochasticCore):
    """What is said depends on the modalities given and on the draw's number alone: outputs[subset, draw]."""

    def __init__(self, likelihood: nn.Module, names: Sequence[str], outputs: Tensor) -> None:
        super().__init__(bert(1), likelihood)
        self.names, self.table = list(names), outputs

    def outputs(self, features: Tensor, batch: Batch) -> Tensor:
        given = sum(batch.context[name].present.long() << i for i, name in enumerate(self.names))
        draw = torch.arange(len(features) // batch.size) % self.table.shape[1]
        return self.table[given][:, draw].transpose(0, 1).reshape(len(features), -1)


class Player(Delta):
    """A guide of a game: draws differ by their numbers, though nothing is sampled."""

    deterministic = False


def game_batch(names: Sequence[str], size: int = 3, lacking: dict[str, Sequence[int]] | None = None) -> Batch:
    def frames(name: str) -> Frames:
        mask = torch.ones(size, 2, dtype=torch.bool)
        mask[list((lacking or {}).get(name, []))] = False
        return Frames(torch.randn(size, 2, 3), mask)

    return Batch({"input_ids": torch.zeros(size, 4, dtype=torch.long)}, None, {name: frames(name) for name in names})


def play(outputs: Tensor, names: Sequence[str] = "ab", likelihood: nn.Module | None = None, **options: Any) -> Any:
    """Attribute a game; ``outputs`` are of shape (subsets, draws, K), subsets numbered by bits."""
    model = Game(likelihood or Bernoulli(), names, outputs)
    options = {"num_samples": outputs.shape[1], "method": "shapley"} | options
    return attribute(model, Player(model), options.pop("data", None) or game_batch(names), **options)


def cola(**encoders: nn.Module) -> CoLA:
    nets = nn.ModuleDict(encoders or {"text": bert(1), "audio": whisper(1)})
    model = fill_B(CoLA(nets, Bernoulli(), rank=2, alpha=4.0))
    with torch.no_grad():
        for null in model.null.values():
            null.normal_()
    return model  # type: ignore[return-value]


def cola_batch(names: Sequence[str] = ("text", "audio"), size: int = 4) -> Batch:
    inputs: dict[str, Tensor] = {}
    for name in names:
        if name == "audio":
            inputs["audio.input_features"] = torch.randn(size, 8, 20)
        else:
            inputs[f"{name}.input_ids"] = torch.randint(0, 40, (size, 5))
    return Batch(inputs, torch.ones(size))
