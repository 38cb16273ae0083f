"""Targets out of range, likelihoods' options, and objectives without targets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import ELBO, Batch, Bernoulli, Categorical, Gaussian, HeteroscedasticGaussian, predict
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import MeanField
from bayes_adapters.likelihoods import Likelihood
from tests.errors.parts import INF, NAN, check, runs
from tests.helpers import core_model, token_batch

LABELS: dict[str, tuple[Callable[[], Likelihood], Tensor, list[object]]] = {
    "class too high": (lambda: Categorical(3), torch.tensor([0, 1, 3, 0, 2]), ["0 … 2", [3], "rows [2]"]),
    "class too low": (lambda: Categorical(3), torch.tensor([0, -100, 2, 0, -1]), ["0 … 2", [-100, -1], "rows [1, 4]"]),
    "classes as floats": (
        lambda: Categorical(3),
        torch.zeros(5),
        ["int64", "(B,)", "torch.float32", "targets.long()"],
    ),
    "classes in a column": (lambda: Categorical(3), torch.zeros(5, 1).long(), ["(B,)", (5, 1), "targets.squeeze(1)"]),
    "classes one-hot": (lambda: Categorical(3), torch.eye(5, 3).long(), ["(B,)", (5, 3), "targets.argmax(1)"]),
    "labels 1 and 2": (Bernoulli, torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0]), [[0, 1], [2.0, 2.0], "1/2"]),
    "labels -1 and 1": (Bernoulli, torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0]), [[0, 1], [-1.0], "-1/1"]),
    "labels as integers": (
        Bernoulli,
        torch.tensor([0, 1, 0, 1, 1]),
        ["torch.int64", "targets.float()"],
    ),
    "labels nan": (Bernoulli, torch.tensor([0.0, NAN, 0.0, 1.0, 1.0]), ["rows [1]", "NaN"]),
    "gaussian inf": (Gaussian, torch.tensor([0.0, 1.0, INF, 1.0, 1.0]), ["rows [2]", "infinite"]),
    "gaussian in a column": (Gaussian, torch.zeros(5, 1), ["(B,)", (5, 1), "targets.squeeze(1)"]),
    "heteroscedastic nan": (HeteroscedasticGaussian, torch.tensor([NAN, 1.0, 1.0, 1.0, 1.0]), ["rows [0]", "NaN"]),
    "heteroscedastic integers": (HeteroscedasticGaussian, torch.arange(5), ["torch.int64", "targets.float()"]),
}


@pytest.mark.parametrize("case", LABELS)
def test_targets_out_of_range_in_training_and_prediction(case: str) -> None:
    likelihood, targets, facts = LABELS[case]
    model = core_model(likelihood=likelihood())
    guide = MeanField(model)
    batch = Batch(token_batch().inputs, targets)
    for run in runs(model, guide, batch):
        check(run, DataError, facts, model, guide)


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: Categorical(1), ["num_classes", 2, 1]),
        (lambda: Gaussian(NAN), ["init_log_scale", "nan"]),
        (lambda: HeteroscedasticGaussian(-1.0), ["min_scale", -1.0]),
    ],
)
def test_a_likelihoods_options(make: Callable[[], Any], facts: list[object]) -> None:
    check(make, ConfigError, facts)


def test_the_elbo_without_targets_and_with_anothers_guide() -> None:
    model, other = core_model(), core_model()
    guide = MeanField(model)
    check(lambda: ELBO(model, guide)(token_batch().without_targets()), ConfigError, ["batch.targets", "predict"], model)
    check(lambda: ELBO(other, guide), ConfigError, ["MeanField(model)", "StochasticCore"], model, other)
    check(
        lambda: predict(other, guide, token_batch()), ConfigError, ["MeanField(model)", "StochasticCore"], model, other
    )
    check(lambda: predict(model, guide, token_batch(), num_samples=0), ConfigError, ["num_samples", 1, 0], model)
