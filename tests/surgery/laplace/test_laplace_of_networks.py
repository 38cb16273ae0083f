"""A Laplace approximation of transformers: what it is summed over, its predictive, its files, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import ELBO, Batch, Bernoulli, Tagging, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, Laplace, MeanField
from bayes_adapters.heads import BayesianLinear
from bayes_adapters.inference.linearised import Tangent
from bayes_adapters.likelihoods import BoundingBox, Tasks
from bayes_adapters.models import StochasticDown
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.last_layer import last_layer_laplace
from tests.helpers import bert, core_model, fill_B, pad, token_batch
from tests.refusals import refuses, warns

pytestmark = pytest.mark.filterwarnings("ignore:The adapter is not at an optimum")
FIXED: dict[str, Any] = {"prior_precision": 1.0}


def pair(**options: Any) -> tuple[Any, Delta, Batch]:
    """Cores of two layers, a point, and padded tokens of several lengths."""
    batch = token_batch(5)
    model = core_model("global", num_data=5, rank=2, **options)
    return model, Delta(model), Batch(batch.inputs, batch.targets)


def test_neither_batches_nor_padding_count() -> None:
    model, point, batch = pair()
    _, whole, log = laplace(model, point, batch, structure="full", **FIXED)
    cut = [pad(batch[:3], 2), batch[3:]]
    _, parts, again = laplace(model, point, iter(cut), structure="full", **FIXED)
    torch.testing.assert_close(parts.joint().covariance_matrix, whole.joint().covariance_matrix, rtol=1e-4, atol=1e-7)
    assert again.log_evidence == pytest.approx(log.log_evidence, rel=1e-5)


def test_structures_are_parts_of_the_full_precision() -> None:
    model, point, batch = pair()
    found = {
        s: laplace(model, point, batch, structure=s, rank=3, **FIXED) for s in ("full", "block", "diagonal", "low_rank")
    }
    precision = {name: torch.linalg.inv(guide.joint().covariance_matrix) for name, (_, guide, _) in found.items()}
    blocks = torch.block_diag(*[precision["full"][i : i + 4, i : i + 4] for i in range(0, 16, 4)])
    torch.testing.assert_close(precision["block"], blocks, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(precision["diagonal"].diagonal(), precision["full"].diagonal(), rtol=1e-3, atol=1e-3)
    bent = torch.linalg.eigvalsh(precision["full"]) - 25.0
    kept = torch.linalg.eigvalsh(precision["low_rank"]) - 25.0
    torch.testing.assert_close(kept[-3:], bent[-3:], rtol=1e-2, atol=1e-3)
    assert kept[:-3].abs().max() < 1e-3
    assert found["low_rank"][2].kept == pytest.approx(float(bent[-3:].sum() / bent.sum()), rel=0.03)
    assert found["full"][2].kept == 1.0


def test_the_tangent_is_that_of_finite_differences() -> None:
    model, point, batch = pair()
    values = {"core.global": point.loc["core-global"].detach()}
    tangent = Tangent(model.eval(), values)
    outputs, jacobian = tangent.at(batch)
    torch.manual_seed(0)
    step = torch.randn(4, 2, 2)
    ends = []
    for sign in (1, -1):
        moved, _ = Tangent(model, {"core.global": values["core.global"] + sign * 0.02 * step}).outputs(batch)
        ends.append(moved.detach())
    torch.testing.assert_close(jacobian @ step.flatten(), (ends[0] - ends[1]) / 0.04, rtol=0.02, atol=1e-3)
    torch.testing.assert_close(outputs, predict(model, point, batch, mean_only=True).mean.logit()[:, None])


def test_linearised_predictions_are_gaussian_in_the_outputs_and_repeatable() -> None:
    model, point, batch = pair()
    _, guide, _ = laplace(model, point, batch, structure="full", **FIXED)
    found = predict(model, guide, batch, num_samples=4000, linearised=True, return_samples=True)
    outputs, jacobian = Tangent(model.eval(), {"core.global": point.loc["core-global"]}).at(batch)
    logits, rows = found.samples.double().logit(), jacobian[:, 0]
    covariance = (rows @ guide.joint().covariance_matrix @ rows.T).double()
    torch.testing.assert_close(logits.mean(0), outputs[:, 0].double(), rtol=0, atol=0.05)
    torch.testing.assert_close(torch.cov(logits.T), covariance, rtol=0, atol=0.08 * float(covariance.max()))
    few = predict(
        model, guide, [batch[:2], batch[2:]], num_samples=5, linearised=True, chunk_size=2, return_samples=True
    )
    torch.testing.assert_close(few.samples, found.samples[:5], rtol=1e-4, atol=1e-5)
    mean = predict(model, guide, batch, mean_only=True, linearised=True)
    torch.testing.assert_close(mean.mean, predict(model, point, batch).mean)
    assert float(mean.epistemic.max()) == 0.0


def test_a_temperature_scales_linearised_outputs_about_those_of_the_mean() -> None:
    model, point, batch = pair()
    _, guide, _ = laplace(model, point, batch, structure="full", **FIXED)
    same: dict[str, Any] = {"num_samples": 5, "linearised": True, "return_samples": True}
    plain, cold = (predict(model, guide, batch, temperature=t, **same).samples for t in (1.0, 0.25))
    mean = predict(model, guide, batch, mean_only=True, linearised=True).mean
    torch.testing.assert_close(cold.logit() - mean.logit(), 0.5 * (plain.logit() - mean.logit()), rtol=1e-3, atol=1e-5)


def test_any_gaussian_over_weights_is_linearised() -> None:
    """Where the posterior is narrow the network is its tangent."""
    model, _, batch = pair()
    guide = MeanField(model, init_scale=1e-3)
    drawn, tangent = (predict(model, guide, batch, linearised=lin, return_samples=True) for lin in (False, True))
    torch.testing.assert_close(tangent.samples, drawn.samples, rtol=1e-4, atol=1e-5)
    assert tangent.samples.std(0).max() > 1e-5


def test_save_load_and_export(tmp_path: Path) -> None:
    model, point, batch = pair()
    _, guide, _ = laplace(model, point, batch, structure="block")
    save(tmp_path / "adapter", model, guide)
    again, guide_again = load(tmp_path / "adapter", bert())
    assert isinstance(guide_again, Laplace)
    for linearised in (True, False):
        a, b = (predict(m, g, batch, linearised=linearised).mean for m, g in ((model, guide), (again, guide_again)))
        assert torch.equal(a, b)
    lora = to_lora(model, guide, bert())
    torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, predict(model, point, batch).mean)
    assert ELBO(model, guide).terms(batch).kl > 0


def test_labels_of_tokens_have_curvature_and_padding_has_none() -> None:
    targets = torch.randint(0, 3, (5, 7))
    batch = token_batch(5)
    model = core_model("global", num_data=5, rank=2, likelihood=Tagging(3))
    labelled = Batch(batch.inputs, targets)
    point = Delta(model)
    _, guide, log = laplace(model, point, labelled, structure="full", **FIXED)
    other = torch.where(batch.inputs["attention_mask"].bool(), targets, -100)
    _, same, _ = laplace(model, point, Batch(batch.inputs, other), structure="full", **FIXED)
    torch.testing.assert_close(same.joint().covariance_matrix, guide.joint().covariance_matrix)
    assert log.determined > 0
    assert predict(model, guide, labelled, linearised=True, num_samples=4).probs.shape == (5, 7, 3)


def test_what_it_refuses() -> None:
    model, point, batch = pair()
    with refuses(ConfigError, "full", "16 weights", "GB", "max_gigabytes", "low_rank"):
        laplace(model, point, batch, structure="full", rank=2, max_gigabytes=8e-9 * 4 * 200)
    with refuses(ConfigError, "prior_precision"):
        laplace(model, point, batch, prior_precision=-1.0)
    with refuses(ConfigError, "validation"):
        laplace(model, point, batch, prior_precision="validation")
    with refuses(DataError, "no targets"):
        laplace(model, point, batch.without_targets())
    with refuses(DataError, "exhausted"):
        laplace(model, point, iter([]))
    token = core_model("token")
    with refuses(ConfigError, "token", "last_layer_laplace"):
        laplace(token, Delta(token), batch)
    head = core_model("global", head=BayesianLinear())
    with refuses(ConfigError, "BayesianLinear"):
        laplace(head, Delta(head), batch)
    box = torch.tensor([[0.5, 0.5, 0.2, 0.2]] * 5)
    for likelihood, targets in ((BoundingBox(), box), (Tasks({"box": BoundingBox()}), {"box": box})):
        kinked = core_model("global", num_data=5, rank=2, likelihood=likelihood)
        for fitted in (laplace, last_layer_laplace):
            with refuses(ConfigError, type(likelihood).__name__, "SWAG", "MeanField"):
                fitted(kinked, Delta(kinked), replace(batch, targets=targets))
    untrained = StochasticDown(bert(), Bernoulli(), num_data=5, rank=2)
    with refuses(ConfigError, "never trained"):
        laplace(untrained, Delta(untrained), batch)
    with refuses(ConfigError, "linearised"):
        predict(model, lambda batch: None, batch, linearised=True)


@pytest.mark.filterwarnings("default")
def test_a_point_that_is_no_optimum_is_named_with_its_distance() -> None:
    model, point, batch = pair()
    fill_B(model, 3.0)
    with warns(UserWarning, "optimum", "deviations") as texts:
        _, _, log = laplace(model, point, batch, structure="full", num_data=5000, **FIXED)
    assert log.shift > 1
    assert f"{log.shift:.3g}" in texts[0]


def test_a_prior_without_variance_is_replaced_by_a_unit_gaussian() -> None:
    for prior, unit in (
        (dist.Normal(0.0, 0.3), 0.3),
        (dist.Laplace(0.0, 1.0), 2**0.5),
        (dist.StudentT(1.5, 0.0, 1.0), 1.0),
    ):
        model, point, batch = pair(prior=prior)
        _, guide, _ = laplace(model, point, batch, structure="diagonal", **FIXED)
        torch.testing.assert_close(guide.gaussian.deviation, torch.full((16,), unit))


def test_the_guide_refuses_what_makes_no_gaussian() -> None:
    model, _, _ = pair()
    for blocks in ([[0, 17, 1]], [[0, 4, 5]], [[0, 4, 1], [2, 6, 1]], [[0, 4]]):
        with refuses(ConfigError, "block"):
            Laplace(model, blocks=blocks)
    guide = Laplace(model, blocks=[[0, 16, 1]])
    with refuses(ConfigError, "positive definite"):
        guide.gaussian.place(torch.zeros(16), torch.ones(16), None, [(torch.eye(16, 1), torch.tensor([-1.0]))])
