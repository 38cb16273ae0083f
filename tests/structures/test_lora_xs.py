"""LoRA-XS: frozen singular directions of the base weight, a core between them, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import nn

from bayes_adapters import Batch, Bernoulli, Gaussian, adapted_layers, load, predict, remove, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, FullGaussian, MeanField
from bayes_adapters.models import LoRAXS
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.merging import merge
from bayes_adapters.training import fit
from tests.helpers import Linear, bert, gpt2, token_batch
from tests.refusals import refuses


def build(net: nn.Module | None = None, **options: Any) -> LoRAXS:
    settings = {"num_data": 5, "rank": 3} | options
    return LoRAXS(net or bert(), Bernoulli(), **settings)


@pytest.mark.parametrize("net", [bert, gpt2])
def test_the_factors_are_torchs_truncated_decomposition(net: Any) -> None:
    options = {"targets": ["c_attn"]} if net is gpt2 else {}
    model = build(net(), **options)
    for layer in adapted_layers(model.backbone).values():
        weight = layer.base_layer.weight.T if net is gpt2 else layer.base_layer.weight
        _, singular, right = torch.linalg.svd(weight)
        down, up = layer.lora_A, layer.lora_B
        torch.testing.assert_close(up.T @ up, torch.eye(3), rtol=0, atol=1e-5)
        torch.testing.assert_close(down @ down.T, singular[:3].square().diag(), rtol=1e-4, atol=1e-5)
        best = weight @ right[:3].T @ right[:3]  # the nearest matrix of rank 3
        torch.testing.assert_close(up @ down, best, rtol=1e-4, atol=1e-5)
        largest = down.gather(1, down.abs().argmax(1, keepdim=True))
        assert bool((largest > 0).all())


def test_a_draw_by_hand_and_the_start_is_the_backbone() -> None:
    torch.manual_seed(0)
    model = LoRAXS(Linear(), Gaussian(), targets=["query"], rank=2, num_data=5)
    layer, x, core = model.backbone.query, torch.randn(2, 1, 4), torch.randn(1, 2, 2)
    left, singular, right = torch.linalg.svd(layer.base_layer.weight.detach(), full_matrices=False)
    sign = (layer.lora_B.T @ left[:, :2]).diagonal().sign()
    update = (left[:, :2] * sign) @ core[0] @ singular[:2].diag() @ (right[:2] * sign[:, None])
    by_hand = layer.base_layer(x) + (16.0 / 2) * x @ update.T
    batch = Batch({"x": x})
    with torch.no_grad():
        found = pyro.poutine.condition(model, {"core.global": core})(batch)
        start = pyro.poutine.condition(model, {"core.global": model.start(model.sites[0])})(batch)
        torch.testing.assert_close(found, model.head(by_hand.mean(1)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(start, model.head(layer.base_layer(x).mean(1)), rtol=0, atol=1e-3)


@pytest.mark.parametrize("guide_type", [MeanField, Delta, FullGaussian])
def test_only_the_core_and_the_head_are_trained_saved_and_loaded(guide_type: Any, tmp_path: Path) -> None:
    model, batch = build(), token_batch()
    guide = guide_type(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, guide, batch, epochs=2, progress=False)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"head.weight", "head.bias"}
    save(tmp_path / "a", model, guide)
    again, guide_again = load(tmp_path / "a", bert())
    for path, layer in adapted_layers(again.backbone).items():
        own = adapted_layers(model.backbone)[path]
        assert torch.equal(layer.lora_A, own.lora_A)
        assert not layer.lora_A.requires_grad
        assert not layer.lora_B.requires_grad
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)


def test_factors_of_another_machine_are_read_back_and_not_computed_again(tmp_path: Path) -> None:
    """Signs of singular vectors are a choice: a core learned under others must find them again."""
    model, batch = build(), token_batch()
    guide = MeanField(model)
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_A.neg_()
            layer.lora_B[:, 0].neg_()
        for loc in guide.loc.values():
            loc.normal_()
    save(tmp_path / "a", model, guide)
    again, guide_again = load(tmp_path / "a", bert())
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)


def test_it_exports_as_a_plain_lora_and_comes_out_of_the_backbone() -> None:
    model, batch = build(), token_batch()
    guide = Delta(model)
    with torch.no_grad():
        for loc in guide.loc.values():
            loc.normal_(0.0, 0.2)
    lora = to_lora(model, guide, bert())
    expected = predict(model, guide, batch).mean
    torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, expected, rtol=1e-4, atol=1e-5)
    merge(lora.backbone)
    plain = remove(model.backbone)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), bert().state_dict().values(), strict=True)
    )


def test_one_core_for_each_token_too() -> None:
    model = build(granularity="token")
    assert {site.granularity.value for site in model.sites} == {"token"}
    assert predict(model, MeanField(model), token_batch(), num_samples=3).epistemic.max() > 0


def test_what_is_refused() -> None:
    with refuses(ConfigError, "'query'", 4, 3):
        LoRAXS(Linear(), Gaussian(), targets=["query"], rank=4, num_data=5)
    net = bert()
    net.encoder.layer[0].attention.self.query.weight = nn.Parameter(
        torch.zeros(16, 16, dtype=torch.int8), requires_grad=False
    )
    with refuses(ConfigError, "torch.int8", "StochasticCore"):
        build(net)
