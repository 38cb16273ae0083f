"""A model whose adapters are no longer in its backbone refuses to answer and to be saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

import bayes_adapters
from bayes_adapters import ELBO, Bernoulli, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField
from bayes_adapters.models import StochasticCore
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses


def uses(model: Any, guide: Any, folder: Path) -> list[Any]:
    batch = token_batch()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    return [
        lambda: predict(model, guide, batch),
        lambda: ELBO(model, guide)(batch),
        lambda: svi.step(batch),
        lambda: model(batch),
        lambda: save(folder, model, guide),
    ]


@pytest.mark.parametrize("another", [False, True])
def test_every_use_is_refused(another: bool, tmp_path: Path) -> None:
    backbone = bert()
    model = core_model(backbone=backbone)
    guide = MeanField(model)
    calls = uses(model, guide, tmp_path / "adapter")
    before = predict(model, guide, token_batch()).probs
    bayes_adapters.remove(backbone)
    if another:
        second = fill_B(StochasticCore(backbone, Bernoulli(), rank=3), 2.0)
        answer = predict(second, MeanField(second), token_batch()).probs
        assert not torch.allclose(answer, before)
    for call in calls:
        with refuses(ConfigError, "'encoder.layer.0.attention.self.query'", "remove(backbone)"):
            call()
    assert not (tmp_path / "adapter").exists()


def test_an_elbo_made_before_notices_too(tmp_path: Path) -> None:
    backbone = bert()
    model = core_model(backbone=backbone)
    elbo = ELBO(model, MeanField(model))
    elbo(token_batch())
    bayes_adapters.remove(backbone)
    with refuses(ConfigError, "'encoder.layer.0.attention.self.query'", "remove(backbone)"):
        elbo(token_batch())


def test_what_was_saved_before_is_loaded_again(tmp_path: Path) -> None:
    backbone = bert()
    model = core_model(backbone=backbone)
    guide = MeanField(model)
    before = predict(model, guide, token_batch()).probs
    save(tmp_path / "adapter", model, guide)
    bayes_adapters.remove(backbone)
    assert torch.equal(predict(*load(tmp_path / "adapter", backbone), token_batch()).probs, before)
