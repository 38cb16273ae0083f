"""Noise of a step: the same however its examples are cut, another one at the next step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bayes_adapters import ELBO, AdapterGuide
from bayes_adapters.guides import Contextual, Flow, MeanField
from tests.helpers import bert, core_model, token_batch

BATCH = token_batch(6)


def gradients(elbo: ELBO, cuts: list[int], step: int = 4) -> dict[str, Tensor]:
    """The gradient of the mean loss over six examples, cut after so many."""
    elbo.zero_grad()
    for first, last in zip([0, *cuts], [*cuts, 6], strict=True):
        (elbo(BATCH[first:last], step) * (last - first) / 6).backward()
    return {name: p.grad.clone() for name, p in elbo.named_parameters() if p.grad is not None}


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, as a share of the largest entry."""
    size = max(float(value.abs().max()) for value in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / size


def made(guide: type[AdapterGuide], granularity: str, particles: int) -> ELBO:
    model = core_model(granularity, rank=2, backbone=bert(1))
    return ELBO(model, guide(model), seed=1, num_particles=particles).eval()


@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize(("guide", "granularity"), [(Contextual, "token"), (MeanField, "global"), (Flow, "global")])
def test_gradients_do_not_depend_on_the_cuts(guide, granularity: str, particles: int) -> None:
    elbo = made(guide, granularity, particles)
    whole, cut, later = gradients(elbo, []), gradients(elbo, [1, 4]), gradients(elbo, [], step=5)
    assert apart(whole, cut) < 1e-5
    assert apart(whole, later) > 1e-4


def test_particles_are_drawn_apart() -> None:
    """Two particles of one noise would be one."""
    one, two = made(MeanField, "global", 1), made(MeanField, "global", 2)
    with torch.no_grad():
        assert float((one(BATCH) - two(BATCH)).abs()) > 1e-4


def test_torchs_generator_stays_where_it_was() -> None:
    elbo = made(MeanField, "global", 1)
    before = torch.random.get_rng_state()
    elbo(BATCH)
    assert torch.equal(before, torch.random.get_rng_state())
