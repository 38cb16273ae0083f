"""The log-uniform prior."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence

from bayes_adapters.distributions import LogUniform
from bayes_adapters.errors import ConfigError
from tests.refusals import refuses


@pytest.mark.parametrize(
    ("alpha", "kl"),
    [(1e-4, 5.240976), (0.01, 2.938956), (0.1, 1.723453), (1, 0.431239), (10, 0.050822), (1e3, 5.03e-4)],
)
def test_variational_dropout_kl(alpha: float, kl: float) -> None:
    q = dist.Normal(torch.tensor(3.0), torch.tensor(3.0 * math.sqrt(alpha)))
    assert kl_divergence(q, LogUniform(1e-20)).item() == pytest.approx(kl, rel=1e-3, abs=1e-6)


def test_the_log_uniform_prior_has_no_draws() -> None:
    with refuses(ConfigError, "StochasticFactors", "RankWise", "MeanField"):
        LogUniform().sample()
