"""A model whose A is random."""

from __future__ import annotations

from typing import Any

from bayes_adapters import Bernoulli
from bayes_adapters.models import StochasticDown
from tests.helpers import bert, fill_B


def down(rank: int = 3, **options: Any) -> StochasticDown:
    return fill_B(StochasticDown(bert(), Bernoulli(), rank=rank, num_data=50, **options))  # type: ignore[return-value]
