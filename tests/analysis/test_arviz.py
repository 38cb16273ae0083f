"""Draws as InferenceData: the groups, and numbers that agree with ``predict`` and with a density computed by hand."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from bayes_adapters import Batch, Categorical, Gaussian, Tagging, predict
from bayes_adapters.analysis.arviz import to_arviz
from bayes_adapters.errors import ConfigError, DataError, MissingResourceError
from bayes_adapters.guides import Delta, MeanField, StoredDraws
from bayes_adapters.models import StochasticCore
from examples.studies.tiny import bert
from tests.refusals import refuses

pytestmark = [
    # ArviZ 0.23 announces its next version whenever it is imported.
    pytest.mark.filterwarnings("ignore:\\nArviZ is undergoing a major refactor:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:arviz"),
]


def pair(likelihood, family=MeanField):
    model = StochasticCore(bert(), likelihood, targets=["query", "value"], rank=2, granularity="global", num_data=5)
    return model, family(model)


def batch(targets: torch.Tensor | None) -> Batch:
    return Batch({"input_ids": torch.arange(1, 16).reshape(5, 3)}, targets)


def test_the_groups_and_their_shapes() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0])
    found = to_arviz(*pair(Categorical(3)), batch(labels), num_samples=9, chunk_size=4)
    assert sorted(found.groups()) == ["log_likelihood", "observed_data", "posterior_predictive"]
    assert dict(found.posterior_predictive["obs"].sizes) == {"chain": 1, "draw": 9, "example": 5}
    assert dict(found.log_likelihood["obs"].sizes) == {"chain": 1, "draw": 9, "example": 5}
    assert found.observed_data["obs"].values.tolist() == labels.tolist()
    assert set(np.unique(found.posterior_predictive["obs"])) <= {0, 1, 2}


def test_frequencies_and_densities_are_those_of_predict() -> None:
    """3,000 draws: the share of label 1 is within four standard errors of p̄, and log mean exp(ll) is the density."""
    labels = torch.tensor([0, 1, 1, 1, 0])
    model, guide = pair(Categorical(2))
    for parameter in guide.loc.values():
        torch.nn.init.normal_(parameter, std=2.0)  # draws that differ
    answer = predict(model, guide, batch(labels), num_samples=500)
    found = to_arviz(model, guide, batch(labels), num_samples=3000, chunk_size=500)
    share = found.posterior_predictive["obs"].mean(("chain", "draw")).values
    p = answer.probs[:, 1].numpy()
    assert (abs(share - p) < 4 * np.sqrt(0.25 / 3000) + 4 * 0.5 / np.sqrt(500)).all()
    density = np.log(np.exp(found.log_likelihood["obs"].values).mean((0, 1)))
    np.testing.assert_allclose(density, answer.log_density.numpy(), atol=0.15)


def test_a_point_estimate_has_one_density_and_gaussian_draws_about_it() -> None:
    targets = torch.tensor([0.1, -0.4, 2.0, 0.0, 1.0])
    model, guide = pair(Gaussian(), Delta)
    answer = predict(model, guide, batch(targets))
    found = to_arviz(model, guide, [batch(targets)], num_samples=2000, chunk_size=1000)
    by_hand = torch.distributions.Normal(answer.mean, answer.variance.sqrt()).log_prob(targets)
    for row in found.log_likelihood["obs"].values[0, ::500]:
        np.testing.assert_allclose(row, by_hand.numpy(), rtol=1e-4)
    spread = found.posterior_predictive["obs"].std(("chain", "draw")).values
    np.testing.assert_allclose(spread, answer.variance.sqrt().numpy(), rtol=0.08)


def test_a_seed_gives_the_same_draws_and_leaves_the_generator_alone() -> None:
    model, guide = pair(Categorical(2))
    state = torch.get_rng_state()
    draws = [to_arviz(model, guide, batch(None), num_samples=20, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    one, two, three = (found.posterior_predictive["obs"].values for found in draws)
    assert (one == two).all()
    assert not (one == three).all()
    assert draws[0].groups() == ["posterior_predictive"]


def test_the_stored_draws_of_a_chain() -> None:
    model, _ = pair(Categorical(3))
    samples = {site.name: torch.randn(6, *site.shape) for site in model.sites}
    found = to_arviz(model, StoredDraws.of(model, samples), batch(torch.tensor([0, 1, 2, 1, 0])), num_samples=6)
    assert dict(found.log_likelihood["obs"].sizes) == {"chain": 1, "draw": 6, "example": 5}


def test_batches_come_one_after_the_other() -> None:
    labels = torch.tensor([0, 1, 2, 1, 0])
    whole = batch(labels)
    parts = [Batch({"input_ids": whole.inputs["input_ids"][rows]}, labels[rows]) for rows in (slice(2), slice(2, 5))]
    found = to_arviz(*pair(Categorical(3), Delta), parts, num_samples=2)
    assert found.observed_data["obs"].values.tolist() == labels.tolist()
    with refuses(DataError, "1 of 2"):
        to_arviz(*pair(Categorical(3)), [parts[0], batch(None)], num_samples=2)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = pair(Categorical(2))
    with refuses(ConfigError, "num_samples", 1, 0):
        to_arviz(model, guide, batch(None), num_samples=0)
    with refuses(DataError, "no batch"):
        to_arviz(model, guide, [])
    with refuses(DataError, "to_arviz()", "Tagging", "return_samples=True"):
        to_arviz(*pair(Tagging(2)), batch(None))
    monkeypatch.setitem(sys.modules, "arviz", None)
    with refuses(MissingResourceError, "to_arviz()", "pip install '.[arviz]'"):
        to_arviz(model, guide, batch(None))
