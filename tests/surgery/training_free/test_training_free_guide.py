"""The guide: noise of one size in the column space of B, nothing to train, saved and loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import ELBO, Bernoulli, adapted_layers, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import TrainingFree
from bayes_adapters.models import LoRA, StochasticCore, StochasticDown
from bayes_adapters.surgery.training_free import rotate
from bayes_adapters.training import fit
from tests.helpers import WIDTH, bert, fill_B, token_batch
from tests.refusals import refuses
from tests.surgery.training_free.parts import RANK, batch, draws, lora, make, products


def basis(B: Tensor) -> Tensor:
    """U of the singular value decomposition of B."""
    return torch.linalg.svd(B.detach(), full_matrices=False)[0]


def spread(U: Tensor, deviation: Tensor) -> Tensor:
    """Standard deviation over draws (S, d_out, d_in) in the basis U: shape (r, d_in)."""
    return torch.einsum("mr,smd->srd", U, deviation).std(0)


def test_noise_has_one_size_in_the_column_space_of_B() -> None:
    model = lora()
    before = products(model)
    left = {
        p: torch.linalg.svd(la.lora_B.detach(), full_matrices=False)[0]
        for p, la in adapted_layers(model.backbone).items()
    }
    _, guide, _ = make(model)
    guide.rescale(0.05)
    for path, found in draws(guide, 4000).items():
        U = left[path]
        deviation = found - before[path]
        coordinates = torch.einsum("mr,smd->srd", U, deviation)
        size = spread(U, deviation)
        torch.testing.assert_close(size, torch.full_like(size, 0.05), rtol=0.06, atol=0)
        torch.testing.assert_close(size.mean(), torch.tensor(0.05), rtol=0.005, atol=0)
        outside = deviation - torch.einsum("mr,srd->smd", U, coordinates)
        assert outside.abs().max() < 1e-5, "no noise outside the column space"
        # Var(ΔW) = σ² U Uᵀ for each input column
        columns = deviation.permute(0, 2, 1).reshape(-1, deviation.shape[1])
        torch.testing.assert_close(columns.mT @ columns / len(columns), 0.05**2 * U @ U.mT, rtol=0, atol=1e-4)
        assert (found.mean(0) - before[path]).abs().max() < 0.005


def test_noise_in_the_original_coordinates_needs_the_rotation() -> None:
    """B (A + V diag(σ/d) ε) has the promised spread; the B (A + diag(σ/d) ε) of some re-implementations has not."""
    torch.manual_seed(2)
    A, B = torch.randn(RANK, 6), torch.randn(10, RANK) * torch.tensor([3.0, 1.0, 0.2])
    B = B @ torch.linalg.qr(torch.randn(RANK, RANK))[0]  # V is far from the identity
    U, d, right = torch.linalg.svd(B, full_matrices=False)
    noise = torch.randn(8000, RANK, 6)
    small = (0.05 / d)[:, None] * noise

    def size(product: Tensor) -> Tensor:
        return spread(U, product - B @ A)

    flat = torch.full((RANK, 6), 0.05)
    torch.testing.assert_close(size(B @ (A + right.mT @ small)), flat, rtol=0.06, atol=0)
    wrong = size(B @ (A + small))
    assert (wrong / flat - 1).abs().max() > 1, wrong
    down, up = rotate(A, B)
    ours = (0.05 / torch.linalg.vector_norm(up, dim=0))[:, None] * noise
    torch.testing.assert_close(size(up @ (down + ours)), flat, rtol=0.06, atol=0)


def test_directions_that_B_lacks_stay_finite_and_silent() -> None:
    model = lora()
    paths = list(adapted_layers(model.backbone))
    layers = adapted_layers(model.backbone)
    with torch.no_grad():
        layers[paths[0]].lora_B[:, 1] = 0.0
        layers[paths[1]].lora_B.zero_()
        layers[paths[2]].lora_B[:, 2] = layers[paths[2]].lora_B[:, 0]
    before = products(model)
    new, guide, log = make(model)
    assert log.null_directions == {paths[0]: 1, paths[1]: 3, paths[2]: 1}
    guide.rescale(0.05)
    found = draws(guide, 3000)
    assert all(bool(v.isfinite().all()) for v in found.values())
    assert torch.equal(found[paths[1]], torch.zeros_like(found[paths[1]])), "an untrained layer adds nothing"
    U = basis(layers[paths[0]].lora_B)[:, :2]
    size = spread(U, found[paths[0]] - before[paths[0]])
    torch.testing.assert_close(size.mean(), torch.tensor(0.05), rtol=0.01, atol=0)
    assert bool(_scales(guide).isfinite().all())
    assert float(_scales(guide).min()) > 0
    assert torch.isfinite(ELBO(new, guide)(batch()))


def _scales(guide: TrainingFree) -> Tensor:
    fn: Any = guide.trace.nodes["A.global"]["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn.scale


def test_a_tiny_singular_value_is_damped() -> None:
    model = lora()
    layer = next(iter(adapted_layers(model.backbone).values()))
    with torch.no_grad():
        layer.lora_B.copy_(torch.linalg.qr(torch.randn(WIDTH, RANK))[0] * torch.tensor([1.0, 1e-3, 1e-6]))
    _, guide, _ = make(model)
    guide.rescale(0.02)
    with torch.no_grad():
        guide(token_batch())
    expected = 0.02 / (torch.tensor([1.0, 1e-3, 1e-6]) + 1e-6)
    torch.testing.assert_close(_scales(guide)[0, :, 0], expected, rtol=1e-3, atol=0)
    assert bool(_scales(guide).isfinite().all())


def test_nothing_of_the_guide_is_trained_and_fit_trains_the_head_alone() -> None:
    new, guide, _ = make(lora())
    assert not list(guide.parameters())
    assert sorted(new.trainable_parameters()) == ["head.bias", "head.weight"]
    buffers = {k: v.clone() for k, v in guide.state_dict().items()}
    ups = {p: la.lora_B.clone() for p, la in adapted_layers(new.backbone).items()}
    head = new.head.weight.clone()
    result = fit(new, guide, [batch()], epochs=2, progress=False)
    assert not torch.equal(new.head.weight, head)
    assert all(torch.equal(v, buffers[k]) for k, v in guide.state_dict().items())
    assert all(torch.equal(la.lora_B, ups[p]) for p, la in adapted_layers(new.backbone).items())
    assert result.history[0]["kl"] == pytest.approx(result.history[1]["kl"]), "the KL is a constant"
    new.head.requires_grad_(False)
    with refuses(ConfigError, "requires_grad=True"):
        fit(new, guide, [batch()], epochs=1, progress=False)


def test_saved_and_loaded(tmp_path: Path) -> None:
    new, guide, log = make(lora())
    save(tmp_path, new, guide, task={"search": log.to_json()})
    again, guide_again = load(tmp_path, bert())
    assert isinstance(guide_again, TrainingFree)
    assert guide_again.config() == guide.config() == {"scale": guide.scale}
    assert sorted(again.trainable_parameters()) == ["head.bias", "head.weight"]
    assert torch.equal(predict(again, guide_again, batch()).probs, predict(new, guide, batch()).probs)
    assert predict(new, guide, batch()).epistemic.max() > 0


def test_the_guide_by_hand() -> None:
    model = StochasticDown(bert(), Bernoulli(), rank=RANK, num_data=10)
    guide = TrainingFree(model, scale=0.3)
    assert guide.scale == pytest.approx(0.3)
    means = {path: torch.randn(RANK, WIDTH) for path in model.layers}
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.copy_(2.0 * torch.linalg.qr(torch.randn(WIDTH, RANK))[0])
    guide.place(means)
    with torch.no_grad():
        guide(token_batch())
    torch.testing.assert_close(_scales(guide), torch.full((4, RANK, WIDTH), 0.3 / 2.000001), rtol=1e-5, atol=0)
    fill_B(model)
    with refuses(ConfigError, "'encoder.layer.0.attention.self.query'", "bayes_adapters.surgery.training_free.rotate"):
        guide.place(means)
    for bad in (0.0, -1.0, float("inf"), float("nan")):
        with refuses(ConfigError, "scale", bad):
            TrainingFree(model, scale=bad)
    with refuses(ConfigError, "TrainingFree", "'core.global'", "A"):
        TrainingFree(StochasticCore(bert(), Bernoulli(), granularity="global", num_data=5))
    with refuses(ConfigError, "TrainingFree", "LoRA", "StochasticCore"):
        TrainingFree(LoRA(bert(), Bernoulli()))
