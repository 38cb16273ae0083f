"""Losses that are not finite: nothing is changed, and the step is named."""

from __future__ import annotations

import pytest
import torch

from bayes_adapters import Categorical, Gaussian
from bayes_adapters.errors import NonFiniteError
from bayes_adapters.guides import MeanField
from tests.refusals import refuses
from tests.training.parts import WHOLE, broken, pair, run, same, weights


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_non_finite_loss_changes_nothing(accumulate: int) -> None:
    model, guide = pair(likelihood=Gaussian())
    optimizer = torch.optim.Adam([*model.trainable_parameters().values(), *guide.parameters()], lr=1e-2)
    run(model, guide, epochs=1, optimizer=optimizer)
    before = weights(model, guide)
    moments = [{k: v.clone() for k, v in s.items()} for s in optimizer.state.values()]
    with refuses(NonFiniteError, "Step 0", "nll = inf") as caught:
        run(model, guide, [broken(WHOLE)], epochs=1, accumulate=accumulate, optimizer=optimizer)
    assert "kl =" not in str(caught[0])
    assert same(weights(model, guide), before)
    for old, new in zip(moments, optimizer.state.values(), strict=True):
        assert all(torch.equal(old[k], new[k]) for k in old)


def test_the_bad_step_and_an_infinite_kl_are_named() -> None:
    model, guide = pair(MeanField)
    with torch.no_grad():
        next(iter(guide.rho.values())).fill_(200.0)
    before = weights(model, guide)
    with refuses(NonFiniteError, "Step 0", "kl"):
        run(model, guide)
    assert same(weights(model, guide), before)
    model, guide = pair(likelihood=Gaussian())
    with refuses(NonFiniteError, "Step 2", "nll"):
        run(model, guide, [WHOLE, WHOLE, broken(WHOLE)])


def test_nan_that_a_distribution_refuses_is_non_finite_too() -> None:
    model, guide = pair(likelihood=Categorical(3))
    parts = [type(WHOLE)(WHOLE.inputs, WHOLE.targets.long(), WHOLE.context)]
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with refuses(NonFiniteError, "Step 0", "nll = nan", "logits"):
        run(model, guide, parts)
