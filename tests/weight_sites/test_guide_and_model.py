"""Any guide × any model with random parts other than the core."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Bernoulli, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, MCDropout, MeanField
from bayes_adapters.models import AdapterDropout, DiagonalCore, LoRA, StochasticCore
from tests.helpers import bert, fill_B, token_batch
from tests.refusals import refuses
from tests.weight_sites.parts import down

CASES = {
    "mask": (lambda: AdapterDropout(bert(), Bernoulli(), rank=3), MCDropout),
    "mask sequence": (lambda: AdapterDropout(bert(), Bernoulli(), rank=3, granularity="sequence"), MCDropout),
    "mask global": (lambda: AdapterDropout(bert(), Bernoulli(), rank=3, granularity="global"), MCDropout),
    "A": (down, MeanField),
    "A delta": (down, Delta),
    "diagonal": (lambda: DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50), MeanField),
    "diagonal delta": (lambda: DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50), Delta),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_do_not_depend_on_how_the_data_is_cut(case: str) -> None:
    build, make_guide = CASES[case]
    model = fill_B(build())
    guide, batch = make_guide(model), token_batch()
    whole = predict(model, guide, batch, num_samples=4, return_samples=True)
    parts = predict(model, guide, [batch[:2], batch[2:]], num_samples=4, chunk_size=3, return_samples=True)
    torch.testing.assert_close(whole.samples, parts.samples, rtol=1e-5, atol=1e-6)
    other = predict(model, guide, batch, num_samples=4, seed=1, return_samples=True)
    assert "delta" in case or not torch.allclose(whole.samples, other.samples)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("model", "guide", "facts"),
    [
        (lambda: AdapterDropout(bert(), Bernoulli()), MeanField, ("MeanField", "MCDropout")),
        (lambda: StochasticCore(bert(), Bernoulli()), MCDropout, ("MCDropout", "core", "mask")),
        (down, Contextual, ("Contextual", "'A.global'", "global", "sequence, token")),
        (lambda: LoRA(bert(), Bernoulli()), MCDropout, ("MCDropout", "LoRA", "StochasticCore")),
    ],
)
def test_pairs_that_cannot_work_are_refused(model: Any, guide: Any, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        guide(model())
