"""Options and inputs that a model would not look at are refused, with the one that it does look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bayes_adapters import Batch, Bernoulli, adapted_layers, load, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Amortised, Delta, Hypernetwork, PooledContext, RankWise
from bayes_adapters.models import CoLA, ConcatLoRA, LoRA, StochasticCore, StochasticFactors, Wander
from bayes_adapters.reliability import FrameDensity, Reliability
from tests.helpers import CONTEXT, bert, core_model, token_batch, whisper
from tests.refusals import refuses

WANDER: dict[str, Any] = {"num_data": 4, "lengths": {"text": 3, "audio": 3}, "fusion_rank": 2, "terms": 2}


def encoders() -> nn.ModuleDict:
    return nn.ModuleDict({"text": bert(), "audio": whisper()})


@pytest.mark.parametrize(("kind", "options"), [(ConcatLoRA, {}), (CoLA, {}), (Wander, WANDER)])
@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_several_encoders_are_pooled_by_streams(kind: Any, options: dict[str, Any], pooling: str) -> None:
    nets = encoders()
    with refuses(ConfigError, f"pooling='{pooling}'", kind.__name__, "streams='cls'"):
        kind(nets, Bernoulli(), pooling=pooling, **options)
    assert not adapted_layers(nets)
    assert kind(nets, Bernoulli(), pooling="mean", **options).config()["pooling"] == "mean"


@pytest.mark.parametrize("kind", [LoRA, StochasticCore])
def test_flipout_is_for_a_random_A(kind: Any) -> None:
    with refuses(ConfigError, "flipout=True", kind.__name__, "StochasticDown"):
        kind(bert(), Bernoulli(), flipout=True)


def test_granularity_is_for_what_is_random() -> None:
    with refuses(ConfigError, "granularity", "LoRA", "StochasticCore"):
        LoRA(bert(), Bernoulli(), granularity="token")


@pytest.mark.parametrize("phi", ["static", "identity"])
def test_a_phi_without_a_network_has_no_hidden_width(phi: str) -> None:
    model = CoLA(encoders(), Bernoulli(), rank=2)
    with refuses(ConfigError, f"phi='{phi}'", "bottleneck"):
        Hypernetwork(model, phi=phi, bottleneck=7)
    Hypernetwork(model, phi=phi, gamma=99)  # no width for it to divide


@pytest.mark.parametrize(
    ("context", "option"),
    [
        ("none", {"reliability": Reliability(FrameDensity(CONTEXT, 1))}),
        ("none", {"null_context": False}),
        ("none", {"modality": "video"}),
        ("none", {"dim": 8}),
        ("none", {"heads": 2}),
        ("global", {"heads": 2}),
        ("global_shared_heads", {"heads": 2}),
    ],
)
def test_how_a_context_is_read_is_for_guides_that_read_it_so(context: str, option: dict[str, Any]) -> None:
    width = {} if context == "none" else {"context_dim": CONTEXT}
    with refuses(ConfigError, f"{next(iter(option))}=", f"context='{context}'"):
        Amortised(core_model(), context=context, **width, **option)
    guide = Amortised(core_model(), context=context, **width)
    assert Amortised(core_model(), **guide.config()).config() == guide.config()


def test_a_pooled_context_has_no_heads() -> None:
    with refuses(ConfigError, "heads=", "context='global'", "'cross_attention'"):
        PooledContext(core_model(), context_dim=CONTEXT, heads=2)


def test_what_one_backbone_reads_cannot_be_missing() -> None:
    with refuses(DataError, "inputs['present']", "<encoder>.present"):
        Batch({**token_batch().inputs, "present": torch.tensor([1, 0, 1, 1, 1])})


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_mask_of_another_length_does_not_choose_a_position(pooling: str) -> None:
    """Whisper halves the length: place 7 of the mask is place 3 of the hidden states."""
    model = LoRA(whisper(), Bernoulli(), targets=["q_proj"], pooling=pooling)
    frames, mask = torch.randn(2, 8, 20), torch.ones(2, 20).long().index_fill(1, torch.arange(8, 20), 0)
    inputs = {"input_features": frames, "attention_mask": mask}
    with refuses(DataError, "(2, 20)", 10, "inputs['token_mask']"):
        model(Batch(inputs))
    model(Batch(inputs | {"token_mask": mask[:, ::2]}))


@pytest.mark.parametrize(
    ("option", "used"),
    [
        ({"streams": "cls"}, {"every_layer": True}),
        ({"rank": 4}, {"targets": ["query", "q_proj"]}),
        ({"alpha": 8.0}, {"targets": ["query", "q_proj"]}),
        ({"dropout": 0.5}, {"targets": ["query", "q_proj"]}),
    ],
)
def test_options_of_parts_that_a_wander_has_not(option: dict[str, Any], used: dict[str, Any], tmp_path: Any) -> None:
    nets = encoders()
    with refuses(ConfigError, f"{next(iter(option))}="):
        Wander(nets, Bernoulli(), **WANDER, **option)
    assert any(parameter.requires_grad for parameter in nets.parameters())  # as before: not frozen
    model = Wander(nets, Bernoulli(), **WANDER, **option, **used)
    save(tmp_path, model, Delta(model))
    assert load(tmp_path, encoders())[0].config() == model.config()


def test_the_default_pooling_is_loaded_again(tmp_path: Any) -> None:
    model = ConcatLoRA(encoders(), Bernoulli())
    save(tmp_path, model, Delta(model))
    assert load(tmp_path, encoders())[0].config() == model.config()


@pytest.mark.parametrize("flipout", [True, False])
def test_the_flipout_of_factors_is_loaded_again(flipout: bool, tmp_path: Any) -> None:
    model = StochasticFactors(bert(), Bernoulli(), num_data=4, rank=2, flipout=flipout)
    save(tmp_path, model, RankWise(model))
    again, _ = load(tmp_path, bert())
    assert again.flipout is flipout
