"""PoLAR: factors that stay orthonormal whatever the optimiser does, and a core that alone has a size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch.autograd import gradcheck

from bayes_adapters import Batch, Bernoulli, Gaussian, adapted_layers, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.inference.draws import weight_draw
from bayes_adapters.models import PoLAR
from bayes_adapters.models.polar import orthonormal, stable_rank
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.training import fit
from tests.helpers import Linear, bert, token_batch
from tests.refusals import refuses


def build(**options: Any) -> PoLAR:
    return PoLAR(bert(), Bernoulli(), **({"num_data": 5, "rank": 3} | options))


def test_rows_become_orthonormal_and_span_the_same_space() -> None:
    torch.manual_seed(0)
    rows = torch.randn(3, 7)
    found = orthonormal(rows)
    torch.testing.assert_close(found @ found.T, torch.eye(3), rtol=0, atol=1e-6)
    torch.testing.assert_close(rows @ found.T @ found, rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(orthonormal(found), found, rtol=0, atol=1e-6)
    torch.testing.assert_close(orthonormal(torch.tensor([2.0, 5.0, 0.1])[:, None] * rows), found, rtol=0, atol=1e-5)


def test_its_gradient_is_that_of_finite_differences_at_the_start_too() -> None:
    """Where the rows are orthonormal already, a method by eigenvectors would divide by 0."""
    torch.manual_seed(0)
    start = orthonormal(torch.randn(2, 5)).double().requires_grad_()

    def exact(rows: torch.Tensor) -> torch.Tensor:
        lower = torch.linalg.cholesky(rows @ rows.mT)
        return torch.linalg.solve_triangular(lower, rows, upper=False)

    assert gradcheck(exact, start)
    weight = torch.randn(2, 5)
    (found,) = torch.autograd.grad(
        (orthonormal(single := start.detach().float().requires_grad_()) * weight).sum(), single
    )
    (expected,) = torch.autograd.grad((exact(start) * weight).sum(), start)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_draw_by_hand() -> None:
    torch.manual_seed(0)
    model = PoLAR(Linear(), Gaussian(), targets=["query"], rank=2, num_data=5)
    layer, x, core = model.backbone.query, torch.randn(2, 1, 4), torch.randn(1, 2, 2)
    with torch.no_grad():
        layer.lora_A.normal_()
        layer.lora_B.normal_()
        y, _ = torch.linalg.qr(layer.lora_A.T)
        down, up = layer.directions()
        torch.testing.assert_close(down.T @ down, y @ y.T, rtol=1e-4, atol=1e-5)
        by_hand = layer.base_layer(x) + (16.0 / 2) * x @ (up @ core[0] @ down).T
        found = pyro.poutine.condition(model, {"core.global": core})(Batch({"x": x}))
        torch.testing.assert_close(found, model.head(by_hand.mean(1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("guide_type", [MeanField, Delta])
def test_it_fits_saves_loads_and_exports_with_orthonormal_factors(guide_type: Any, tmp_path: Path) -> None:
    model, batch = build(), token_batch()
    guide = guide_type(model)
    before = {path: layer.lora_A.detach().clone() for path, layer in model.installed.items()}
    fit(model, guide, batch, epochs=3, progress=False)
    for path, layer in model.installed.items():
        assert not torch.equal(layer.lora_A, before[path])
        down, up = layer.directions()
        torch.testing.assert_close(down @ down.T, torch.eye(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(up.T @ up, torch.eye(3), rtol=0, atol=1e-5)
    save(tmp_path / "a", model, guide)
    again, guide_again = load(tmp_path / "a", bert())
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)
    lora = to_lora(model, guide, bert())
    expected = predict(model, guide, batch, mean_only=True).mean
    torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, expected, rtol=1e-4, atol=1e-5)


def test_the_stable_rank_of_the_core_is_that_of_the_update() -> None:
    model = build()
    guide = MeanField(model, init_scale=0.3)
    draws = weight_draw(model, guide, 0)
    found = model.stable_ranks(draws)
    assert list(found) == model.layers
    for i, (path, layer) in enumerate(adapted_layers(model.backbone).items()):
        down, up = layer.directions()
        update = up.detach() @ draws["core.global"][i] @ down.detach()
        by_hand = torch.linalg.matrix_norm(update) ** 2 / torch.linalg.matrix_norm(update, 2) ** 2
        assert found[path] == pytest.approx(float(by_hand), rel=1e-4)
    assert float(stable_rank(torch.ones(4, 4))) == pytest.approx(1.0)


def test_more_ranks_than_directions_are_refused() -> None:
    with refuses(ConfigError, "'query'", 4, 3):
        PoLAR(Linear(), Gaussian(), targets=["query"], rank=4, num_data=5)
