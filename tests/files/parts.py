"""Models and guides with random values everywhere, to be saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Bernoulli
from bayes_adapters.guides import Contextual
from bayes_adapters.models import StochasticCore
from tests.helpers import bert

Pair = tuple[AdapterModel, AdapterGuide]


def scramble(model: AdapterModel, guide: AdapterGuide, seed: int = 1) -> Pair:
    """Give every trained tensor a random value: nothing stays at zero or at its start."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in [*model.trainable_parameters().values(), *guide.parameters()]:
            p.add_(0.3 * torch.randn(p.shape, generator=rng))
    return model, guide


def pair(
    backbone: nn.Module | None = None, granularity: str = "token", guide: Any = Contextual, **options: Any
) -> Pair:
    model = StochasticCore(
        bert() if backbone is None else backbone,
        options.pop("likelihood", None) or Bernoulli(),
        granularity=granularity,
        rank=3,
        num_data=50,
        prior=options.pop("prior", None),
        targets=options.pop("targets", ("query", "value")),
    )
    return scramble(model, guide(model, **options))


def edit_json(folder: Path, change: Callable[[dict[str, Any]], Any], *, repair: bool = True) -> None:
    """Change the description; ``repair`` gives it the checksum of what it then says, where it has one."""
    path = folder / "adapter.json"
    about = json.loads(path.read_text())
    change(about)
    if repair and "checksum" in about:
        del about["checksum"]
        about["checksum"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(about))
