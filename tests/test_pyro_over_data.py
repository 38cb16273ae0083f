"""Over all N examples under stock Pyro: importance weights, autoguides, and handlers around model and guide."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Importance, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.infer.importance import vectorized_importance_weights

from bayes_adapters import AdapterModel, Batch, Gaussian
from bayes_adapters.guides import MeanField
from tests.helpers import Linear, core_model, token_batch


def _six_examples() -> tuple[AdapterModel, Batch]:
    """A model with one random number, and six examples."""
    torch.manual_seed(5)
    batch = Batch({"x": torch.randn(6, 3, 4)}, targets=torch.randn(6))
    one = {"targets": ["query"], "rank": 1, "prior": dist.Normal(0.0, 1.0), "num_data": 6}
    return core_model("global", backbone=Linear(), likelihood=Gaussian(-1.0), **one), batch


@pytest.fixture(scope="module")
def known() -> tuple[float, float, float]:
    """By quadrature: log p(y), and the posterior's mean and deviation, for :func:`_six_examples`."""
    model, batch = _six_examples()
    grid = torch.linspace(-6, 6, 601)
    with torch.no_grad():
        fixed = [poutine.condition(model, {"core.global": e.reshape(1, 1, 1)}) for e in grid]
        joint = torch.stack([poutine.trace(m).get_trace(batch).log_prob_sum() for m in fixed])
    weight = joint.softmax(0)
    mean = (weight * grid).sum()
    deviation = (weight * (grid - mean).square()).sum().sqrt()
    return float(joint.logsumexp(0) + math.log(0.02)), float(mean), float(deviation)


@pytest.mark.parametrize("vectorised", [False, True])
def test_importance_weights_have_the_evidence(known: tuple[float, float, float], vectorised: bool) -> None:
    model, batch = _six_examples()
    evidence, mean, deviation = known
    guide = MeanField(model, init_scale=2 * deviation).requires_grad_(False)
    guide.loc["core-global"].fill_(mean + deviation)
    with torch.no_grad():
        if vectorised:
            weights, *_ = vectorized_importance_weights(model, guide, batch, num_samples=2000, max_plate_nesting=1)
            found = weights.logsumexp(0).item() - math.log(2000)
        else:
            found = Importance(model, guide, num_samples=300).run(batch).get_log_normalizer().item()
    assert found == pytest.approx(evidence, abs=0.2)


def test_the_posterior_of_all_examples_under_an_autoguide(known: tuple[float, float, float]) -> None:
    model, batch = _six_examples()
    model.requires_grad_(False)
    guide = AutoNormal(model)
    elbo = Trace_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 2e-2}), elbo)
    for _ in range(300):
        svi.step(batch)
    assert pyro.param("AutoNormal.scales.core.global").item() == pytest.approx(known[2], rel=0.3)


def test_a_batch_stands_for_all_examples_and_without_a_known_size_for_itself() -> None:
    """The mean over batches of the estimated log-joint is the log-joint of the whole."""
    model, batch = _six_examples()
    core = {"core.global": torch.full((1, 1, 1), 0.7)}
    conditioned = poutine.condition(model, core)
    with torch.no_grad():
        whole = poutine.trace(conditioned).get_trace(batch).log_prob_sum()
        parts = [poutine.trace(conditioned).get_trace(batch[i : i + 2]).log_prob_sum() for i in (0, 2, 4)]
        outputs = poutine.condition(model, core)(batch)[..., 0]
    by_hand = dist.Normal(outputs, math.exp(-1.0)).log_prob(batch.targets).sum() + dist.Normal(0.0, 1.0).log_prob(
        torch.tensor(0.7)
    )
    torch.testing.assert_close(whole, by_hand)
    torch.testing.assert_close(torch.stack(parts).mean(), whole)
    for num_data, scale in ((None, 1.0), (20, 4.0)):
        local = core_model("token", num_data=num_data)
        nodes = poutine.trace(local).get_trace(token_batch()).nodes
        assert {nodes[name]["scale"] for name in [*(s.name for s in local.sites), "obs"]} == {scale}


def test_a_handler_around_the_guide_scales_svi_and_one_around_the_model_does_not() -> None:
    model, batch = _six_examples()
    guide = MeanField(model, init_scale=1e-4)
    loss = [
        TraceMeanField_ELBO().loss(m, g, batch)
        for m, g in [(model, guide), (model, poutine.scale(guide, 6)), (poutine.scale(model, 6), guide)]
    ]
    assert [v / loss[0] for v in loss] == pytest.approx([1, 6, 1], rel=1e-3)


def test_a_trace_around_a_guide_keeps_a_conditioned_core() -> None:
    model, batch = core_model("global"), token_batch()
    conditioned = poutine.condition(MeanField(model), {"core.global": torch.zeros(4, 3, 3)})
    assert set(poutine.trace(conditioned).get_trace(batch).nodes) >= {"core.global"}
    assert "obs" not in poutine.trace(conditioned).get_trace(batch).nodes
    assert "obs" in poutine.trace(conditioned).get_trace(batch.without_targets()).nodes
