"""Streams made here, a problem of them, and records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from bayes_adapters import Batch
from examples.studies.wander.cost import Random
from examples.studies.wander.problems import Part, Settings
from examples.studies.wander.records import Result

SETTINGS = Settings(epochs=2, batch_size=16, rates=(1e-3, 3e-2))
ROWS, FRAMES, WIDTH = 48, 5, 64


@dataclass(frozen=True)
class Product(Random):
    """Two streams whose means' first numbers have a product whose sign is the label; each by itself says nothing."""

    settings: Settings = field(default=SETTINGS)
    streams: int = field(default=2, kw_only=True)

    @property
    def count(self) -> int:
        return ROWS

    def made(self, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        values = {n: torch.randn(ROWS, FRAMES, WIDTH, generator=generator) for n in self.lengths}
        product = torch.stack([v.mean(1)[:, 0] for v in values.values()]).prod(0)
        return values, (product > 0).float()

    def training(self, encoded: bool, seed: int) -> list[Batch]:
        values, labels = self.made(seed)
        return [
            Batch({f"{n}.signal": v[part] for n, v in values.items()}, labels[part], index=part)
            for part in torch.arange(ROWS).split(self.settings.batch_size)
        ]

    def validation(self, encoded: bool) -> list[Batch]:
        return self.training(encoded, 100)

    @property
    def conditions(self) -> Sequence[str]:
        return ("all", "without-a", "without-b")

    def summary(self, condition: str) -> str:
        return "without-1" if condition.startswith("without") else condition

    def test(self, encoded: bool, condition: str) -> Part:
        return Part(self.training(encoded, 200), [(str(row), str(row // 6)) for row in range(ROWS)])


def result(method: str, seed: int = 0, condition: str = "all", **changes: Any) -> Result:
    """Return a record."""
    numbers: dict[str, Any] = {"accuracy": 0.5, "auc": 0.6, "nll": 0.6, "brier": 0.2, "ece": 0.1, "samples": 1}
    numbers |= {"auroc_error": 0.5, "auroc_ood": 0.5, "aurc": 0.3, "seconds": 1.0, "parameters": 10.0}
    return Result(method=method, seed=seed, split="test", condition=condition, n=4, **(numbers | changes))
