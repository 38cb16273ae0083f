"""What ``predict`` draws of families that have no inverse CDF of their own."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import (
    AdapterGuide,
    Granularity,
    predict,
)
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.handlers import KeyedDraws
from tests.helpers import core_model, token_batch
from tests.refusals import refuses


def test_prior_without_inverse_cdf_is_refused_or_drawn_by_torch() -> None:
    class Wide(AdapterGuide):
        name, serves = "wide", frozenset(Granularity)

        def posterior(self, call, prior):
            return dist.StudentT(torch.full((3, 3), 5.0), 0.0, 0.2).to_event(2)

    model = core_model()
    guide, batch = Wide(model), token_batch()
    with refuses(ConfigError, "StudentT", "predict(..., seed=None)"):
        predict(model, guide, batch)
    assert predict(model, guide, batch, seed=None).epistemic.max() > 0


@pytest.mark.parametrize("family", [dist.LogNormal, dist.Beta])
def test_a_posterior_made_of_another_distribution_is_drawn(family: Any) -> None:
    """LogNormal holds a Normal, not tensors; its draws are exact, those of a Beta are refused by name."""

    class Positive(AdapterGuide):
        name, serves, all_reals = "positive", frozenset(Granularity), False

        def posterior(self, call, prior):
            return family(torch.full((3, 3), 0.5), torch.tensor(0.7)).to_event(2)

    model = core_model(prior=dist.HalfNormal(1.0))
    guide, batch = Positive(model), token_batch()
    if family is dist.Beta:
        with refuses(ConfigError, "Beta", "predict(..., seed=None)"):
            predict(model, guide, batch)
        return
    whole = predict(model, guide, batch, return_samples=True).samples
    torch.testing.assert_close(predict(model, guide, [batch[:2], batch[2:]], return_samples=True).samples, whole)
    with pyro.plate("samples", 2000, dim=-2), KeyedDraws(0, torch.arange(2000), torch.arange(1)), torch.no_grad():
        guide(batch[:1])
    logs = guide.trace.nodes[model.sites[0].name]["value"].log()
    assert logs.mean().item() == pytest.approx(0.5, abs=0.02)
    assert logs.std().item() == pytest.approx(0.7, abs=0.02)
