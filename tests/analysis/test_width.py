"""How wide a posterior is beside its prior."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import Bernoulli, Prediction, predict
from bayes_adapters.analysis.width import relative_widths, warn_of_a_point
from bayes_adapters.errors import PointPosteriorWarning
from bayes_adapters.guides import Contextual, Delta, LowRank, MCDropout, MeanField
from bayes_adapters.inference.handlers import PosteriorMean
from bayes_adapters.models import AdapterDropout
from tests.helpers import bert, core_model, loc_scale, pad, token_batch
from tests.refusals import warns

BATCH = token_batch()


def pair(guide: Any = MeanField, **options: Any) -> tuple[Any, Any]:
    model = core_model(**{"granularity": "global"} | options)
    torch.manual_seed(1)
    return model, guide(model)


def test_the_median_of_the_ratios_by_hand() -> None:
    model, guide = pair(prior=dist.Normal(0.0, 0.5))
    with torch.no_grad():
        rho = next(iter(guide.rho.values()))
        rho.copy_(torch.linspace(-4.0, -1.0, rho.numel()).reshape(rho.shape))
    expected = float((rho.detach().exp() / 0.5).median())
    assert relative_widths(model, guide, BATCH) == {model.sites[0].name: pytest.approx(expected)}
    cold = relative_widths(model, guide, BATCH, temperature=0.25)
    assert next(iter(cold.values())) == pytest.approx(expected / 2)


def test_a_joint_posterior_is_measured_by_its_marginals() -> None:
    model, guide = pair(LowRank)
    marginal = guide.joint().variance.detach().sqrt() / 0.2
    assert relative_widths(model, guide, BATCH) == {model.sites[0].name: pytest.approx(float(marginal.median()))}


def test_local_cores_count_at_real_tokens_only() -> None:
    model, guide = pair(Contextual, granularity="token")
    with torch.no_grad(), PosteriorMean():
        guide(BATCH)
    nodes = dict(guide.trace.nodes)
    found = relative_widths(model, guide, BATCH)
    for site in model.sites:
        _, scale = loc_scale(nodes[site.name]["fn"])
        assert found[site.name] == pytest.approx(float((scale[BATCH.token_mask] / 0.2).median()), rel=1e-4)
    assert relative_widths(model, guide, pad(BATCH, 3)) == pytest.approx(found, rel=1e-4)


def test_points_and_masks_and_priors_without_a_variance() -> None:
    model, guide = pair(Delta)
    assert set(relative_widths(model, guide, BATCH).values()) == {0.0}
    masked = AdapterDropout(bert(), Bernoulli(), rank=2, targets=["query"])
    assert relative_widths(masked, MCDropout(masked), BATCH) == {}
    model, guide = pair(prior=dist.Cauchy(0.0, 0.2))
    assert relative_widths(model, guide, BATCH) == {}


def answer(epistemic: float) -> Prediction:
    parts = [torch.tensor([v]) for v in (0.9, 0.5, 0.5 - epistemic, epistemic)]
    return Prediction(*parts, 8)


def test_the_warning_is_one_line_with_figures() -> None:
    with pytest.warns(PointPosteriorWarning) as caught:
        text = warn_of_a_point({"A": 0.04, "B": 0.5}, answer(0.001))
    assert str(caught[0].message) == text
    for part in ("1 of 2 sites", "below 0.1", "'A' 0.04", "0.001 of 0.5 nats (0.20%)"):
        assert part in str(text)
    assert "\n" not in str(text)
    assert warn_of_a_point({"A": 0.2, "B": 0.5}, answer(0.2)) is None
    with warns(PointPosteriorWarning, "1 of 1 sites"):
        assert "draws add" not in str(warn_of_a_point({"A": 0.2}, answer(0.2), narrow=0.3))


def test_a_posterior_that_is_a_point_in_fact() -> None:
    model, guide = pair(lambda m: MeanField(m, init_scale=1e-3))
    with warns(PointPosteriorWarning, "0.005"):
        warn_of_a_point(relative_widths(model, guide, BATCH), predict(model, guide, BATCH, num_samples=8))
