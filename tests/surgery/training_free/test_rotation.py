"""The rotation of A and B keeps the product and what the mean predicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters import Categorical, adapted_layers, predict
from bayes_adapters.guides import Delta
from bayes_adapters.surgery.training_free import bayesianise, rotate
from tests.helpers import bert, gpt2
from tests.surgery.training_free.parts import batch, lora, products


@pytest.mark.parametrize(("d_out", "rank"), [(16, 3), (5, 5), (2, 4)])
def test_rotation_keeps_the_product_and_makes_B_orthogonal(d_out: int, rank: int) -> None:
    A, B = torch.randn(rank, 7), torch.randn(d_out, rank)
    down, up = rotate(A, B)
    assert (down.shape, up.shape) == (A.shape, B.shape)
    torch.testing.assert_close(up @ down, B @ A, rtol=0, atol=1e-6)
    square = up.mT @ up
    torch.testing.assert_close(square, square.diagonal().diag(), rtol=0, atol=1e-5)
    lengths = torch.linalg.vector_norm(up, dim=0)
    torch.testing.assert_close(lengths[: min(d_out, rank)], torch.linalg.svdvals(B))
    assert bool((lengths[min(d_out, rank) :] == 0).all())


@pytest.mark.parametrize("backbone", [bert, gpt2])
def test_the_mean_is_unchanged(backbone: Any) -> None:
    targets = ["query", "value"] if backbone is bert else ["c_attn", "c_fc"]
    model = lora(backbone(), Categorical(3), targets=targets, pooling="last")
    guide = Delta(model)
    data = batch(classes=3)
    before = products(model)
    new, posterior, _ = bayesianise(model, guide, data, tolerance=0.02, num_samples=4)
    for site in new.sites:
        for place, path in enumerate(site.layers):
            found = (
                adapted_layers(new.backbone)[path].lora_B
                @ posterior.get_buffer("mean-" + site.name.replace(".", "-"))[place]
            )
            torch.testing.assert_close(found, before[path], rtol=0, atol=1e-6)
    expected, found = predict(model, guide, data, mean_only=True), predict(new, posterior, data, mean_only=True)
    torch.testing.assert_close(found.probs, expected.probs, rtol=0, atol=1e-6)
    assert found.probs.std() > 0.05, "predictions that are all alike would agree by themselves"
