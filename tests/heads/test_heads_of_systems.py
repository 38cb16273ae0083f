"""Every published system with a head that has a posterior of its own: trained, predicted with, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bayes_adapters import ELBO, Bernoulli, load, predict, save
from bayes_adapters.heads import BayesianLinear, Head, VariationalLastLayer
from bayes_adapters.systems import build
from examples.studies.tiny import batch, make
from tests.systems.parts import LABELS, NAMES, backbone_of, required


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [BayesianLinear, VariationalLastLayer])
def test_a_system_with_a_random_head(name: str, kind: type[Head], tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = required(name) | ({"gamma": 2} if "cola" in name else {}) | ({} if "wander" in name else {"rank": 2})
    model, guide = build(name, make(backbone_of(name)), Bernoulli(), head=kind(), **options)
    data = batch(backbone_of(name), LABELS)
    ELBO(model, guide)(data).backward()
    own = guide.head_posterior
    assert own is not None
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in own.parameters())
    found = predict(model, guide, data, num_samples=6)
    assert bool((found.epistemic > 0).all())
    torch.testing.assert_close(predict(model, guide, data, num_samples=6, chunk_size=2).total, found.total)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, make(backbone_of(name)))
    torch.testing.assert_close(predict(again, guide_again, data, num_samples=6).total, found.total)
