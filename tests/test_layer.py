"""The adapted layer: its formula, and a backbone that comes back bit for bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bayes_adapters import (
    Batch,
    Bernoulli,
    Categorical,
    adapted_layers,
    adapters_disabled,
    predict,
    remove,
    select,
)
from bayes_adapters.adapters.installation import install
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError, DataError, NonFiniteError
from bayes_adapters.guides import Contextual, MeanField
from bayes_adapters.heads.pooling import Pooling
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.priors import zero_normal
from tests.helpers import VOCAB, bert, core_model, fill_B, gpt2, llama, token_batch, vit, whisper
from tests.refusals import refuses


@pytest.mark.parametrize(
    "base", [nn.Linear(4, 6), nn.Linear(4, 6, bias=False), Conv1D(6, 4)], ids=["linear", "no_bias", "conv1d"]
)
@pytest.mark.parametrize("shape", [(5, 4), (5, 3, 4), (2, 3, 2, 4)])
def test_formula(base: nn.Module, shape: tuple[int, ...]) -> None:
    layer = AdaptedLinear(base, rank=2, alpha=6.0)
    x = torch.randn(shape)
    assert torch.equal(layer(x), base(x)), "B = 0 at construction"
    nn.init.normal_(layer.lora_B)
    torch.testing.assert_close(layer(x), base(x) + 3.0 * x @ layer.lora_A.T @ layer.lora_B.T)


def test_initialisation() -> None:
    layer = AdaptedLinear(nn.Linear(300, 5), rank=7, alpha=7.0)
    assert layer.lora_B.abs().max() == 0
    bound = 1 / math.sqrt(300)  # Kaiming-uniform with a = √5
    assert layer.lora_A.abs().max() <= bound
    assert layer.lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert "rank=7, scaling=1, core=I" in repr(layer)


def test_dropout_acts_on_the_adapter_in_training_only() -> None:
    layer = AdaptedLinear(nn.Linear(4, 4), rank=2, alpha=2.0, dropout=0.5)
    nn.init.normal_(layer.lora_B)
    x = torch.randn(50, 4)
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    layer.train()
    assert not torch.equal(layer(x), layer(x))
    nn.init.zeros_(layer.lora_B)
    assert torch.equal(layer(x), layer.base_layer(x))


def test_options_are_checked() -> None:
    cases: list[tuple[dict[str, Any], tuple[object, ...]]] = [
        ({"rank": 0}, ("rank", 1, 0)),
        ({"dropout": 1.0}, ("dropout", "[0, 1)", 1.0)),
        ({"base_layer": nn.LayerNorm(3)}, ("LayerNorm",)),
    ]
    for options, facts in cases:
        settings: dict[str, Any] = {"base_layer": nn.Linear(2, 2), "rank": 1, "alpha": 1.0} | options
        with refuses(ConfigError, *facts):
            AdaptedLinear(**settings)


@pytest.mark.parametrize("build", [bert, gpt2, llama, vit, whisper])
def test_install_and_remove_restore_the_backbone_bit_for_bit(build: Any) -> None:
    net = build()
    inputs = {
        "vit": {"pixel_values": torch.randn(2, 3, 16, 16)},
        "whisper": {"input_features": torch.randn(2, 8, 20)},
    }.get(build.__name__, {"input_ids": torch.randint(0, VOCAB, (2, 5))})
    state = {k: v.clone() for k, v in net.state_dict().items()}
    with torch.no_grad():
        before = net(**inputs).last_hidden_state
        model = fill_B(LoRA(net, Bernoulli(), targets="all-linear", rank=2))  # type: ignore[arg-type]
        adapted = net(**inputs).last_hidden_state
        with model.adapters_disabled():
            disabled = net(**inputs).last_hidden_state
        again = net(**inputs).last_hidden_state
    assert not torch.equal(adapted, before)
    assert torch.equal(disabled, before)
    assert torch.equal(again, adapted)
    assert remove(net) is net
    assert net.state_dict().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    with torch.no_grad():
        assert torch.equal(net(**inputs).last_hidden_state, before)
    assert adapted_layers(net) == {}


def test_disabling_is_undone_after_an_error_and_nests() -> None:
    net = bert()
    layers = install(net, select(net, ["query"]), rank=2, alpha=2.0)
    first, second = layers.values()
    first.enabled = False
    with pytest.raises(RuntimeError), adapters_disabled(net):
        raise RuntimeError
    assert (first.enabled, second.enabled) == (False, True)
    with adapters_disabled(net):
        with adapters_disabled(net):
            pass
        assert not second.enabled
    assert second.enabled


def test_only_adapters_and_head_train() -> None:
    model = LoRA(bert(), Categorical(3), rank=2)
    names = set(model.trainable_parameters())
    assert {n.rsplit(".", 1)[-1] for n in names if n.startswith("backbone")} == {"lora_A", "lora_B"}
    assert {n for n in names if not n.startswith("backbone")} == {"head.weight", "head.bias"}


def test_mode_of_the_layer_follows_the_backbone() -> None:
    for train in (True, False):
        net = bert().train(train)
        layers = install(net, select(net, ["query"]), rank=2, alpha=2.0)
        assert all(layer.training is train for layer in layers.values())


def test_adapting_twice_is_refused() -> None:
    net = bert()
    LoRA(net, Bernoulli())
    with refuses(ConfigError, "BertModel", "bayes_adapters.remove(backbone)"):
        LoRA(net, Bernoulli())
    remove(net)
    LoRA(net, Bernoulli())


def test_a_random_core_needs_its_model() -> None:
    model = core_model()
    with refuses(ConfigError, "'encoder.layer.0.attention.self.query'", "core", "model.adapters_disabled()"):
        model.backbone(**token_batch().inputs)


# ---- models over the backbones ----


@pytest.mark.parametrize("granularity", ["token", "sequence", "global"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "vit", "whisper"])
def test_backbones_under_random_cores(name: str, granularity: str) -> None:
    build, targets, inputs = {
        "gpt2": (gpt2, ["c_attn"], {"input_ids": torch.randint(0, VOCAB, (3, 6))}),
        "llama": (llama, ["q_proj"], {"input_ids": torch.randint(0, VOCAB, (3, 6))}),
        "vit": (vit, r".*(q|query|q_proj)", {"pixel_values": torch.randn(3, 3, 16, 16)}),
        "whisper": (whisper, ["v_proj"], {"input_features": torch.randn(3, 8, 20)}),
    }[name]
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 2 + [0] * 4])
    model = fill_B(  # type: ignore[arg-type]
        StochasticCore(build(), Bernoulli(), targets=targets, rank=2, granularity=granularity, num_data=9)
    )
    guide = MeanField(model, init_scale=0.5)
    batch = Batch(inputs, torch.tensor([0.0, 1.0, 1.0]))
    whole = predict(model, guide, batch, num_samples=4)
    parts = predict(model, guide, [batch[:1], batch[1:]], num_samples=4, chunk_size=3)
    torch.testing.assert_close(whole.mean, parts.mean, rtol=1e-4, atol=2e-6)
    assert whole.epistemic.max() > 1e-6


def test_pooling() -> None:
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    right = torch.tensor([[True, True, False, False], [True] * 4])
    left = torch.tensor([[False, True, True, True], [False, False, False, True]])
    torch.testing.assert_close(Pooling.MEAN(hidden, right), torch.stack([hidden[0, :2].mean(0), hidden[1].mean(0)]))
    torch.testing.assert_close(Pooling.MEAN(hidden, None), hidden.mean(1))
    assert torch.equal(Pooling.CLS(hidden, right), hidden[:, 0])
    assert torch.equal(Pooling.LAST(hidden, right), torch.stack([hidden[0, 1], hidden[1, 3]]))
    assert torch.equal(Pooling.LAST(hidden, left), hidden[:, 3])
    assert torch.equal(Pooling.LAST(hidden, None), hidden[:, 3])


def test_the_mean_neither_overflows_in_half_precision_nor_reads_padding() -> None:
    hidden = torch.full((1, 400, 2), -200.0, dtype=torch.float16)  # whose sum is beyond float16
    hidden[0, 399] = float("nan")
    mask = torch.ones(1, 400).bool()
    mask[0, 399] = False
    pooled = Pooling.MEAN(hidden, mask)
    assert pooled.dtype == torch.float16
    assert torch.equal(pooled, torch.full((1, 2), -200.0, dtype=torch.float16))


def test_model_options_are_checked() -> None:
    with refuses(ConfigError, "num_data=", "'core.global'"):
        StochasticCore(bert(), Bernoulli(), granularity="global")
    with refuses(ConfigError, "num_data=", "'core.encoder.layer.0.attention.self.query'", "3 more"):
        StochasticCore(bert(), Bernoulli(), granularity="global", grouped=False)
    with refuses(ConfigError, "granularity", "'tokens'", "'token'"):
        StochasticCore(bert(), Bernoulli(), granularity="tokens")
    with refuses(ConfigError, "pooling", "'max'", "mean"):
        LoRA(bert(), Bernoulli(), pooling="max")
    net = bert()
    net.config = type("Config", (), {})()
    with refuses(ConfigError, "BertModel", "hidden_size"):
        LoRA(net, Bernoulli())


def test_a_refused_model_leaves_the_backbone_alone() -> None:
    net = bert()
    for options in ({"rank": 0}, {"dropout": 2.0}, {"prior": {"nothing": zero_normal()}}):
        with pytest.raises(ConfigError):
            StochasticCore(net, Bernoulli(), **options)
        assert adapted_layers(net) == {}, options


def test_non_finite_inputs_are_named() -> None:
    model = core_model()
    guide, batch = Contextual(model), token_batch()
    batch.context["audio"].values[3, 0, 0] = float("nan")
    with refuses(NonFiniteError, "context['audio']", [3]):
        guide(batch)


def test_wrong_targets_are_named() -> None:
    model = core_model(likelihood=Categorical(2))
    with refuses(DataError, "int64", "torch.float32"):
        model(token_batch())


def test_config_rebuilds_the_model() -> None:
    model = core_model("global", rank=2, alpha=4.0, dropout=0.1, pooling="cls")
    again = StochasticCore(bert(), Bernoulli(), **model.config())
    assert again.config() == model.config()
    assert again.state_dict().keys() == model.state_dict().keys()
