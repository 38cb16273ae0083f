"""ScalaBL: a random diagonal in a fixed basis."""

from __future__ import annotations

import math

import pytest
import torch

from bayes_adapters import ELBO, Bernoulli, adapted_layers
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField
from bayes_adapters.models import DiagonalCore, LoRA
from tests.helpers import bert, token_batch
from tests.refusals import refuses
from tests.weight_sites.parts import down


def test_the_diagonal_starts_at_the_singular_values_of_a_fresh_A() -> None:
    torch.manual_seed(3)
    model = DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)
    torch.manual_seed(3)
    plain = LoRA(bert(), Bernoulli(), rank=3)
    guide = MeanField(model, init_scale=(0.035, 0.05), positive_mean=True)
    for i, path in enumerate(model.layers):
        own = adapted_layers(model.backbone)[path].lora_A
        fresh = adapted_layers(plain.backbone)[path].lora_A
        torch.testing.assert_close(own @ own.T, torch.eye(3), rtol=0, atol=1e-6)
        s = guide.loc["diagonal-global"][i].exp()
        torch.testing.assert_close((own.T * s.square()) @ own, fresh.T @ fresh, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in guide.parameters()) == 2 * 3 * 4, "2 r a layer"


def test_kl_of_scalabl_is_from_q_to_p() -> None:
    model = DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)
    guide = MeanField(model, init_scale=0.05, positive_mean=True)
    terms = ELBO(model, guide).terms(token_batch())
    mean = guide.loc["diagonal-global"].exp()
    expected = 0.5 * (0.05**2 + mean.square() - 1 - 2 * math.log(0.05)).sum() / 50
    assert terms.kl.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_positive_mean_needs_a_positive_start() -> None:
    with refuses(ConfigError, "positive_mean=True", "'A.global'", "DiagonalCore"):
        MeanField(down(), positive_mean=True)
