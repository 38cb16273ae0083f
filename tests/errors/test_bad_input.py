"""Bad input after training, and covariances that cannot be: what was given, what is allowed, and a way out."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Batch, Bernoulli, predict
from bayes_adapters.analysis.calibration import TemperatureScaling, VectorScaling
from bayes_adapters.analysis.conformal import ConformalClasses, ConformalQuantiles
from bayes_adapters.analysis.marginal import Marginal
from bayes_adapters.errors import ConfigError, DataError, NonFiniteError
from bayes_adapters.files.marks import Marks
from bayes_adapters.guides import Delta, Flow, FullGaussian, LowRank, MatrixNormal, MeanField
from bayes_adapters.heads import ConjugateLastLayer, GaussianProcessHead
from bayes_adapters.heads.covariance import Covariance, GaussianRows
from bayes_adapters.likelihoods import MultiGaussian, Poisson
from bayes_adapters.models import AdapterDropout, GatedLoRA, LoRA, StochasticDown
from bayes_adapters.reliability import calibrate_scale
from bayes_adapters.surgery.ensemble import ensemble
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.last_layer import last_layer_laplace
from bayes_adapters.surgery.swag import Trajectory
from bayes_adapters.training import fit
from bayes_adapters.training.inducing import initialise
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses
from tests.reliability.parts import guide_of, heard

BATCH = token_batch(6)


def down() -> StochasticDown:
    return StochasticDown(bert(), Bernoulli(), num_data=6, rank=2)


def lora(trained: bool = True) -> tuple[Any, Any]:
    model = LoRA(bert(), Bernoulli(), rank=2)
    model = fill_B(model) if trained else model
    return model, Delta(model)


def test_a_covariance_that_is_not_positive_definite_is_no_error_of_linear_algebra() -> None:
    model = core_model("global", rank=2, num_data=6)
    guide = LowRank(model)
    with torch.no_grad():
        guide.log_scale.fill_(-200.0)
    with refuses(NonFiniteError, "LowRank", "positive definite", "0 to 0", "clip_norm"):
        fit(model, guide, BATCH, max_steps=1, progress=False)
    rows = GaussianRows(torch.zeros(2, 5), 0.1, Covariance.LOW_RANK, 2)
    with torch.no_grad():
        rows.log_scale.fill_(-200.0)
    with refuses(NonFiniteError, "GaussianRows", "positive definite"):
        rows()


def test_a_matrix_without_a_factor_is_no_error_of_linear_algebra() -> None:
    model = LoRA(bert(), MultiGaussian(2), rank=2, num_data=6, head=ConjugateLastLayer())
    guide: Any = Delta(model)
    batch = Batch(BATCH.inputs, torch.zeros(6, 2))
    with torch.no_grad():
        guide.head_posterior.log_noise.fill_(-80.0)
    with refuses(NonFiniteError, "cholesky", "learning rate"):
        fit(model, guide, batch, max_steps=1, progress=False)
    with refuses(NonFiniteError, "cholesky", "model's own tensors are finite"):
        predict(model, guide, batch)


def test_a_covariance_that_is_too_large_says_how_large_and_what_fits() -> None:
    size = 4 * 2 * 16  # entries of A in four layers
    gigabytes = 4e-9 * size * 1000
    with refuses(ConfigError, 1000, f"{gigabytes:.3g} GB", "max_gigabytes=0.0001", "covariance_rank=195", "layer"):
        LowRank(down(), covariance_rank=1000, max_gigabytes=1e-4)
    with refuses(ConfigError, "GB", "max_gigabytes=1", "FullGaussian(over='layer')"):
        LowRank(down(), covariance_rank=10**8)
    small = LowRank(down(), covariance_rank=2, max_gigabytes=1e-4)
    assert LowRank(down(), **small.config()).config()["max_gigabytes"] == 1e-4
    assert "max_gigabytes" not in LowRank(down()).config()
    with refuses(ConfigError, "over='all'", "over='layer'", "GB"):
        FullGaussian(down(), over="all", max_gigabytes=2e-5)
    with refuses(ConfigError, "structure='full'", "structure='diagonal'", "GB", "max_gigabytes"):
        laplace(*lora(), BATCH, structure="full", max_gigabytes=1e-4)


def test_laplace_before_training() -> None:
    with refuses(ConfigError, "LoRA", "B is 0 in all 4", "fit(model, guide, data)"):
        laplace(*lora(trained=False), BATCH)
    with refuses(ConfigError, "curvature is exactly 0", "never trained"):
        laplace(*lora(trained=False), BATCH, weights="core")
    model, point = lora()
    Marks(()).put_on(model)  # as from_peft does where the head did not come along
    for way in (laplace, last_layer_laplace):
        with refuses(ConfigError, "head was never trained", "fit"):
            way(model, point, BATCH)


def test_more_inducing_points_than_data() -> None:
    model = LoRA(bert(), Bernoulli(), rank=2, num_data=6, head=GaussianProcessHead(64))
    with refuses(ConfigError, "num_inducing=64", 6, "GaussianProcessHead(6)"):
        initialise(model, Delta(model), BATCH)


@pytest.mark.parametrize("guide", [Flow, FullGaussian, LowRank, MatrixNormal, MeanField])
def test_a_continuous_guide_on_a_discrete_site(guide: Any) -> None:
    with refuses(ConfigError, guide.__name__, "mask", "discrete", "MCDropout"):
        guide(AdapterDropout(bert(), Bernoulli(), rank=2, targets=["query"]))
    with refuses(ConfigError, guide.__name__, "gate", "discrete", "RankGates"):
        guide(GatedLoRA(bert(), Bernoulli(), rank=2, num_data=6))


def test_too_few_examples_and_one_class_only() -> None:
    with refuses(DataError, "alpha=0.1", 9, 5):
        ConformalClasses.fit(torch.rand(5), torch.ones(5))
    with refuses(DataError, "alpha=0.05", 19, 18):
        ConformalQuantiles.fit(torch.zeros(18, 2), torch.ones(18), alpha=0.05)
    with refuses(DataError, "TemperatureScaling", 20, "class 1", "sorted"):
        TemperatureScaling.fit(torch.rand(20), torch.ones(20))
    with refuses(DataError, "VectorScaling", [2], "TemperatureScaling"):
        VectorScaling.fit(torch.rand(40, 3).softmax(-1), torch.tensor([0, 1] * 20))


def test_a_count_that_training_has_not_seen_names_what_can_be_done() -> None:
    model = core_model(likelihood=Poisson())
    guide = guide_of("pooled_context", model, fallback="widen", scale=1.0)
    far = heard(shift=9.0, size=16)
    far = Batch(far.inputs, torch.tensor([0.0, 1.0, 7.0, 0.0] * 4), far.context)
    with refuses(DataError, 7, "0 to 1", "training targets") as raised:
        calibrate_scale(model, guide, far, torch.tensor([0, 1] * 8), num_samples=2)
    assert "num_classes" not in str(raised[0]), "it has no such option"
    assert guide.reliability.scale == 1.0
    with refuses(ConfigError, 7, "0 to 1", "Marginal.of(targets, num_classes=8)"):
        Marginal.of(torch.tensor([0, 1])).nll(torch.tensor([7]))


def test_swag_with_fewer_snapshots_than_columns_and_ensembles_of_one() -> None:
    model, point = lora()
    path = Trajectory(start=1, every=1, columns=5)
    fit(model, point, BATCH, max_steps=3, on_step=path, progress=False)
    with refuses(ConfigError, "columns=5", 3, "train longer"):
        path.posterior(model, point, num_data=6)
    with refuses(ConfigError, "two or more", "1 member", "seeds"):
        ensemble([(model, point)])
    with refuses(ConfigError, "two or more", "0 members"):
        ensemble([])
    with refuses(ConfigError, "Member 1 of 2", "copy of the backbone"):
        ensemble([(model, point), (model, Delta(model))])
