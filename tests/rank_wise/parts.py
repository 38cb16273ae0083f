"""Models of random A and B, and their guide with one variance a rank."""

from __future__ import annotations

from typing import Any

import torch

from bayes_adapters import Bernoulli
from bayes_adapters.guides import RankWise
from bayes_adapters.models import StochasticFactors
from bayes_adapters.priors import PriorLike
from tests.helpers import bert

LAYERS = [f"encoder.layer.{i}.attention.self.{name}" for i in range(2) for name in ("query", "value")]


def pair(
    rank: int = 3, scale: float = 0.3, num_data: int = 50, prior: PriorLike | None = None, **options: Any
) -> tuple[StochasticFactors, RankWise]:
    """A two-layer BERT whose B is not near zero."""
    model = StochasticFactors(bert(), Bernoulli(), rank=rank, num_data=num_data, prior=prior)
    guide = RankWise(model, **options)
    rng = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, loc in guide.loc.items():
            if name.startswith("B"):
                loc.copy_(scale * torch.randn(loc.shape, generator=rng))
    return model, guide
