"""Weights and modules that are held twice: every holder computes what it did, before merging and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bayes_adapters import Batch, Bernoulli, adapted_layers, predict, remove
from bayes_adapters.adapters.installation import adapters_disabled
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField
from bayes_adapters.heads import LinearHead
from bayes_adapters.likelihoods import Likelihood
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.surgery.merging import merge
from tests.helpers import fill_B
from tests.refusals import refuses

WIDTH = 6


class _Tied(nn.Module):
    """Two layers that share something, and an embedding."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = type("Config", (), {"hidden_size": WIDTH})()
        self.table = nn.Embedding(WIDTH, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        if kind == "parameter":
            self.second.weight = self.first.weight
        elif kind == "embedding":
            self.first.weight = self.table.weight
        elif kind == "module":
            self.second = self.first
        elif kind == "view":
            whole = torch.randn(2 * WIDTH, WIDTH)
            self.first.weight, self.second.weight = nn.Parameter(whole[:WIDTH]), nn.Parameter(whole[:WIDTH])

    def forward(self, ids: Tensor) -> Any:
        hidden = self.second(self.first(self.table(ids)).tanh()) + self.table(ids)
        return type("Output", (), {"last_hidden_state": hidden})()


IDS = torch.arange(12).reshape(3, 4) % WIDTH


@pytest.mark.parametrize("targets", [["first"], ["second"], "all-linear"], ids=str)
@pytest.mark.parametrize("kind", ["parameter", "embedding", "module", "view"])
def test_merging_changes_no_output_whatever_is_shared(kind: str, targets: Any) -> None:
    net = _Tied(kind)
    if kind == "module" and targets == ["second"]:
        targets = ["first"]  # torch lists a module under its first path
    with torch.no_grad():
        frozen = net(IDS).last_hidden_state
        fill_B(LoRA(net, Bernoulli(), targets=targets, rank=2))
        adapted = net(IDS).last_hidden_state
        assert not torch.allclose(adapted, frozen)
        merged = merge(net)
        torch.testing.assert_close(merged(IDS).last_hidden_state, adapted, rtol=1e-5, atol=1e-6)
        assert not adapted_layers(merged)
        assert torch.equal(merged.table.weight, net.table.weight)
        assert torch.equal(net(IDS).last_hidden_state, adapted)
        assert torch.equal(remove(net)(IDS).last_hidden_state, frozen)


def test_a_module_at_two_paths_is_adapted_at_both() -> None:
    """At one of them it would run without its adapter."""
    net = _Tied("module")
    with torch.no_grad():
        before = net(IDS).last_hidden_state
        model = fill_B(LoRA(net, Bernoulli(), targets=["first"], rank=2))
        layer = adapted_layers(net)["first"]
        assert net.second is net.first is layer
        assert model.layers == ["first"]
        expected = layer(layer(net.table(IDS)).tanh()) + net.table(IDS)
        assert torch.equal(net(IDS).last_hidden_state, expected)
        with adapters_disabled(net):
            assert torch.equal(net(IDS).last_hidden_state, before)
    remove(net)
    assert net.second is net.first
    assert isinstance(net.second, nn.Linear)


def test_a_refused_model_leaves_no_adapter_at_either_path() -> None:
    net = _Tied("module")

    class Odd(LinearHead):
        def build(self, width: int, likelihood: Likelihood) -> None:
            raise ConfigError("no head")

    with refuses(ConfigError, "no head"):
        LoRA(net, Bernoulli(), targets=["first"], rank=2, head=Odd())
    assert net.second is net.first
    assert isinstance(net.second, nn.Linear)


def test_a_draw_of_a_module_at_two_paths_is_one_function() -> None:
    model = fill_B(StochasticCore(_Tied("module"), Bernoulli(), targets=["first"], granularity="global", num_data=3))
    guide, batch = MeanField(model, init_scale=0.5), Batch({"ids": IDS})
    folded = predict(model, guide, batch, num_samples=3, return_samples=True).samples
    one = predict(model, guide, batch, num_samples=3, chunk_size=1, return_samples=True).samples
    assert isinstance(one, Tensor)
    assert (one.std(0) > 1e-5).all()
    torch.testing.assert_close(folded, one, rtol=1e-5, atol=1e-6)
    local = StochasticCore(_Tied("module"), Bernoulli(), targets=["first"])
    with refuses(ConfigError, "'first'", "granularity='global'"):
        MeanField(local)(batch)


def test_a_weight_computed_from_others_is_refused() -> None:
    net = _Tied("none")
    parametrize.register_parametrization(net.first, "weight", nn.Softplus())
    LoRA(net, Bernoulli(), targets=["first"], rank=2)
    with refuses(
        ConfigError,
        "'first'",
    ):
        merge(net)
