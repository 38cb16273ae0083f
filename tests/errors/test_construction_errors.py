"""Models, layers and guides that cannot be built: the error facts why, and nothing is left changed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes_adapters import Bernoulli, Targets, adapted_layers
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import BayesAdaptersError, ConfigError, TargetError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MeanField, PooledContext
from bayes_adapters.heads import Head
from bayes_adapters.models import DiagonalCore, FusionLoRA, LoRA, StochasticCore
from tests.errors.parts import INF, NAN, check
from tests.helpers import CONTEXT, bert, core_model
from tests.refusals import refuses

MODEL_OPTIONS: dict[str, tuple[dict[str, Any], type[BayesAdaptersError], list[object]]] = {
    "unknown target": ({"targets": ["qery"]}, TargetError, ["'qery'", "mean 'query'", "dense, key, query, value"]),
    "no linear layer": ({"targets": ["LayerNorm"]}, TargetError, ["'LayerNorm'", "a LayerNorm", "only torch"]),
    "one of two unknown": ({"targets": ["query", "valu"]}, TargetError, ["'valu'", "'value'"]),
    "no targets": ({"targets": []}, TargetError, ["targets are empty", "['query', 'value']", "all-linear"]),
    "no pattern": ({"targets": "enc["}, TargetError, ["'enc['", ["enc["]]),
    "pattern without match": ({"targets": "enc.*qery"}, TargetError, ["'enc.*qery'", "BertModel"]),
    "absent block": ({"targets": Targets(["query"], layers=[1, 9])}, TargetError, [[9], [0, 1]]),
    "all excluded": ({"targets": Targets(["query"], exclude=["query"])}, TargetError, [["query"]]),
    "prior of nothing": (
        {"prior": {"core.*.qery": dist.Normal(0.0, 1.0), "*": dist.Normal(0.0, 1.0)}},
        ConfigError,
        ["'core.*.qery'", "core.encoder.layer.0.attention.self.query"],
    ),
    "prior of half": (
        {"prior": {"*query": dist.Normal(0.0, 1.0)}},
        ConfigError,
        ["'core.encoder.layer.0.attention.self.value'", "'*'"],
    ),
    "prior too wide": ({"prior": dist.Normal(torch.zeros(5, 5), 1.0)}, ConfigError, [(3, 3), (5, 5)]),
    "unknown granularity": (
        {"granularity": "tokens"},
        ConfigError,
        ["granularity", "'tokens'", "'token'", "global, sequence"],
    ),
    "global without a size": ({"granularity": "global"}, ConfigError, ["num_data=len(training set)"]),
    "unknown pooling": ({"pooling": "men"}, ConfigError, ["pooling", "'men'", "'mean'", "cls, last, mean"]),
    "rank 0": ({"rank": 0}, ConfigError, ["rank", 1, 0]),
    "rank -1": ({"rank": -1}, ConfigError, ["rank", 1, -1]),
    "dropout": ({"dropout": 1.0}, ConfigError, ["dropout", "[0, 1)", 1.0]),
    "alpha": ({"alpha": NAN}, ConfigError, ["alpha", "nan"]),
}


@pytest.mark.parametrize("case", MODEL_OPTIONS)
def test_a_model_that_cannot_be_built_leaves_the_backbone_alone(case: str) -> None:
    options, kind, facts = MODEL_OPTIONS[case]
    net = bert()
    check(lambda: StochasticCore(net, Bernoulli(), **({"rank": 3} | options)), kind, facts, net)


def test_a_diagonal_core_needs_as_many_inputs_as_ranks() -> None:
    net = bert()
    facts = ["'encoder.layer.0.attention.self.query'", "16 inputs", 17, "rank=16"]
    check(lambda: DiagonalCore(net, Bernoulli(), rank=17, num_data=4), ConfigError, facts, net)


def test_an_error_after_the_adapters_were_installed_takes_them_out() -> None:
    class Headless(LoRA):
        def default_head(self, pooling: Any) -> Head:
            return NoHead()

    class NoHead(Head):
        def build(self, width: int, likelihood: Any) -> None:
            raise ConfigError("no head")

    net = bert()
    check(lambda: Headless(net, Bernoulli()), ConfigError, ["no head"], net)
    model = LoRA(net, Bernoulli())
    check(lambda: Headless(net, Bernoulli()), ConfigError, ["BertModel", "bayes_adapters.remove(backbone)"], net)
    assert adapted_layers(model.backbone)


def test_a_backbone_of_unknown_width() -> None:
    net = bert()
    net.config = SimpleNamespace()
    check(lambda: LoRA(net, Bernoulli()), ConfigError, ["BertModel", "hidden_size, d_model or n_embd"], net)


def test_a_fused_model_of_no_width() -> None:
    net = bert()
    check(lambda: FusionLoRA(net, Bernoulli(), context_dim=0), ConfigError, ["context_dim", 1, 0], net)


def test_a_layer_of_another_kind() -> None:
    layer = nn.Conv1d(2, 2, 1)
    check(lambda: AdaptedLinear(layer, 2, 2.0), ConfigError, ["a Conv1d", "torch.nn.Linear"], layer)


C: dict[str, Any] = {"context_dim": CONTEXT}
GUIDE_OPTIONS: dict[str, tuple[Any, dict[str, Any], list[object]]] = {
    "scale": (Contextual, {"scale": "sofplus"}, ["scale", "'sofplus'", "'softplus'", "sigmoid_squared"]),
    "scale of pooled": (PooledContext, C | {"scale": "exp"}, ["scale", "'exp'", "sigmoid_squared, softplus"]),
    "heads": (CrossAttention, C | {"dim": 8, "heads": 3}, ["heads=3", "dim=8"]),
    "no heads": (CrossAttention, C | {"heads": 0}, ["heads", 1, 0]),
    "width": (Contextual, {"width": 0}, ["width", 1, 0]),
    "context_dim": (CrossAttention, {"context_dim": 0}, ["context_dim", 1, 0]),
    "dim": (PooledContext, C | {"dim": -2}, ["dim", 1, -2]),
    "init_scale": (MeanField, {"init_scale": -0.1}, ["init_scale", -0.1]),
    "infinite init_scale": (MeanField, {"init_scale": INF}, ["init_scale", "inf"]),
}


@pytest.mark.parametrize("case", GUIDE_OPTIONS)
def test_a_guides_options(case: str) -> None:
    guide, options, facts = GUIDE_OPTIONS[case]
    model = core_model()
    check(lambda: guide(model, **options), ConfigError, facts, model)


@pytest.mark.parametrize(("guide", "options"), [(Contextual, {}), (PooledContext, C), (CrossAttention, C)])
def test_a_guide_that_cannot_serve_the_models_sites(guide: Any, options: dict[str, Any]) -> None:
    model = core_model("global")
    facts = [guide.__name__, "'core.global'", "sequence, token", "granularity=", "MeanField", "Delta"]
    check(lambda: guide(model, **options), ConfigError, facts, model)
    lora = LoRA(bert(), Bernoulli())
    facts = [guide.__name__, "LoRA", "StochasticCore", "Delta"]
    check(lambda: guide(lora, **options), ConfigError, facts, lora)


def test_mean_field_and_delta_on_a_model_without_cores() -> None:
    lora = LoRA(bert(), Bernoulli())
    check(lambda: MeanField(lora), ConfigError, ["MeanField", "LoRA", "StochasticCore"], lora)
    assert list(Delta(lora).parameters()) == []


def test_ranks_of_a_model_without_adapted_layers() -> None:
    """It ended in an IndexError."""
    with refuses(ConfigError, "ranks", "'query'", 0):
        LoRA(bert(), Bernoulli(), targets=None, ranks={"query": 3})
