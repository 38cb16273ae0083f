"""What the ELBO refuses: pairs that do not fit, draws without a gradient, a negative weight."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch

from bayes_adapters import ELBO, KLWeight
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Contextual, MeanField
from bayes_adapters.sites import SiteCall
from tests.helpers import core_model, token_batch
from tests.refusals import refuses


def test_errors() -> None:
    model, other = core_model(), core_model()
    guide = Contextual(model)
    with refuses(ConfigError, "Contextual", "StochasticCore"):
        ELBO(other, guide)
    with refuses(ConfigError, "num_particles", 1, 0):
        ELBO(model, guide, num_particles=0)
    with refuses(ConfigError, "KL weight", 0, -1.0):
        ELBO(model, guide, kl_weight=-1.0)
    with refuses(ConfigError, "kl_mode", "'mean'", "full, per_token_mean"):
        ELBO(model, guide, kl_mode="mean")
    with refuses(ConfigError, "batch.targets"):
        ELBO(model, guide)(token_batch().without_targets())
    with refuses(DataError, [0, 1], [2.0]):
        ELBO(model, guide)(token_batch(targets=torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0])))


class _TwoPeaks(MeanField):
    """A mixture of two Gaussians an entry, whose draws torch does not reparametrise."""

    def posterior(self, call: SiteCall, prior: Any) -> Any:
        normal = super().posterior(call, prior).base_dist
        peaks = dist.Normal(torch.stack([normal.loc - 1, normal.loc + 1], -1), normal.scale[..., None])
        even = dist.Categorical(logits=torch.zeros(*normal.loc.shape, 2))
        return dist.MixtureSameFamily(even, peaks).to_event(len(call.site.event))


@pytest.mark.parametrize("granularity", ["token", "global"])
def test_a_posterior_whose_draws_have_no_gradient_is_refused(granularity: str) -> None:
    model = core_model(granularity)
    guide = _TwoPeaks(model)
    with refuses(ConfigError, "MixtureSameFamily", repr(model.sites[0].name), "Trace_ELBO"):
        ELBO(model, guide)(token_batch())
    with torch.no_grad():
        assert ELBO(model, guide)(token_batch()).isfinite()
    assert ELBO(model.requires_grad_(False), guide.requires_grad_(False))(token_batch()).isfinite()


@pytest.mark.parametrize("weight", [-1e-3, math.nan])
def test_a_kl_weight_is_not_negative(weight: float) -> None:
    with refuses(ConfigError, 0, weight):
        KLWeight(weight)
    model = core_model()
    with refuses(ConfigError, 0, weight):
        ELBO(model, Contextual(model), kl_weight=lambda step: weight)(token_batch())
