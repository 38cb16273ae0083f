"""Encoders of unequal depth, three of them, missing ones, and those that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from bayes_adapters import Batch, Bernoulli, adapted_layers
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Contextual, Hypernetwork
from bayes_adapters.modalities.blocks import describe_blocks
from bayes_adapters.models import CoLA
from bayes_adapters.priors import zero_normal
from tests.cola.parts import cola
from tests.helpers import bert, logits, vit, whisper
from tests.refusals import refuses
from tests.text_and_audio import batch, encoders

LAYER = "encoder.layer.0.attention.self.query"

BLOCK = 6


def renamed(role: str, path: str) -> Any:
    """The text encoder's blocks as JSON, one module of the first given another path."""
    found = [vars(block) for block in describe_blocks(bert())]
    return [found[0] | {role: f"encoder.layer.0.{path}"}, *found[1:]]


def test_unequal_depths_are_spread_and_the_rest_gets_one_path() -> None:
    model = cola(encoders(6, 4), depths="spread")
    paired = {name: sorted({own for n, _, own, _ in model.pairs if n == name}) for name in ("text", "audio")}
    assert paired == {"text": [0, 2, 3, 5], "audio": [0, 1, 2, 3]}
    layers = adapted_layers(model.backbone)
    assert len(layers) == 10 * BLOCK
    assert sum(bool(layer.inter) for layer in layers.values()) == 8 * BLOCK
    assert torch.isfinite(logits(Hypernetwork(model, gamma=4), batch())).all()


def test_three_encoders_have_a_path_from_each_partner() -> None:
    nets = nn.ModuleDict({"text": bert(2), "audio": whisper(2), "image": vit(2)})
    model = cola(nets)
    assert len(model.sites) == 3 * 2 * BLOCK * 2
    assert all(set(layer.inter) == set(nets) - {p.split(".")[0]} for p, layer in adapted_layers(nets).items())
    pixels = {"image.pixel_values": torch.randn(4, 3, 16, 16)}
    guide = Hypernetwork(model, gamma=4)
    whole = logits(guide, batch(**pixels))
    other = logits(guide, batch(**{"image.pixel_values": torch.randn(4, 3, 16, 16)}))
    assert not torch.allclose(whole, other)
    assert torch.isfinite(logits(guide, batch())).all(), "a whole encoder may be missing"


def test_a_whole_number_is_a_gain() -> None:
    model = cola(gain=1)
    assert all(p.gain.item() == 1.0 for layer in adapted_layers(model.backbone).values() for p in layer.inter.values())


def test_missing_for_the_batch_is_missing_for_every_example() -> None:
    model, data = cola(), batch()
    with torch.no_grad():
        for null in [*model.null.values(), *model.null_descriptor.values()]:
            null.normal_()
    guide = Hypernetwork(model, gamma=4)
    text = {k: v for k, v in data.inputs.items() if k.startswith("text.")}
    absent = logits(guide, Batch(text))
    flagged = logits(guide, Batch(data.inputs | {"audio.present": torch.zeros(4)}))
    torch.testing.assert_close(absent, flagged, rtol=1e-5, atol=1e-6)
    some = logits(guide, Batch(data.inputs | {"audio.present": torch.tensor([1, 0, 1, 1])}))
    torch.testing.assert_close(some[1], absent[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some[[0, 2, 3]], logits(guide, data)[[0, 2, 3]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "kind", "facts"),
    [
        (lambda: CoLA(bert(), Bernoulli()), ConfigError, ("CoLA", 2, "nn.ModuleDict", "BertModel")),
        (lambda: cola(encoders(3, 2)), ConfigError, ("'same'", "3 and 2", "'spread'")),
        (lambda: cola(share="A", cross_rank=2), ConfigError, ("share='A'", "cross_rank", "2 and 3")),
        (
            lambda: cola(share="A", ranks={"text.encoder.layer.0.attention.self.query": 1}),
            ConfigError,
            ("share='A'", 3, f"'text.{LAYER}'", 1, "share='none'"),
        ),
        (lambda: cola(cross_rank=0), ConfigError, ("cross_rank", 1, 0)),
        (lambda: cola(gain=float("nan")), ConfigError, ("gain", "nan")),
        (lambda: cola(head_width=0), ConfigError, ("head_width", 1, 0)),
        (lambda: Hypernetwork(cola(), gamma=0), ConfigError, ("gamma", 1, 0)),
        (lambda: cola(targets=["pooler.dense"]), ConfigError, ("targets=", f"'{LAYER}'")),
        (lambda: cola(streams={"text": "cls"}), ConfigError, ("streams", ["audio", "text"], ["text"])),
        (
            lambda: cola(schedule="progresive"),
            ConfigError,
            ("schedule", "'progresive'", "module, progressive, uniform"),
        ),
        (lambda: cola(blocks={"video": []}), ConfigError, ("blocks", "'video'", ["audio", "text"])),
        (
            lambda: cola(blocks={"text": [{"path": "encoder.layer.0"}]}),
            ConfigError,
            ("blocks['text']", "fc1, fc2, residual", [{"path": "encoder.layer.0"}]),
        ),
        (
            lambda: cola(blocks={"text": renamed("query", "attention.qery")}),
            ConfigError,
            ("blocks['text'][0]", "query='encoder.layer.0.attention.qery'", "BertModel", f"'{LAYER}'"),
        ),
        (
            lambda: cola(blocks={"text": renamed("residual", "norm")}),
            ConfigError,
            ("blocks['text'][0]", "residual='encoder.layer.0.norm'", "BertModel", "'encoder.layer.0'"),
        ),
        (
            lambda: cola(blocks={"text": renamed("path", "")}),
            ConfigError,
            ("blocks['text'][0]", "path='encoder.layer.0.'", "BertModel", "'encoder.layer.0'"),
        ),
        (
            lambda: Hypernetwork(cola(rank=7), gamma=4, phi="kron"),
            ConfigError,
            ("phi='kron'", 7, "4, 8 or 16", "phi='dense'"),
        ),
        (lambda: Hypernetwork(cola(), gamma=64), ConfigError, ("gamma", 1, 16, 64)),
        (
            lambda: Hypernetwork(cola(), gamma=4, phi="identity", scale="softplus"),
            ConfigError,
            ("phi='identity'", "scale"),
        ),
        (lambda: Contextual(cola()), ConfigError, ("Contextual", f"'cross.text.{LAYER}'", "core")),
        (
            lambda: cola()(Batch({"input_ids": torch.ones(2, 3).long()})),
            DataError,
            ("'input_ids'", "text.input_ids", "text, audio"),
        ),
    ],
)
def test_errors(build: Any, kind: type[Exception], facts: tuple[object, ...]) -> None:
    with refuses(kind, *facts):
        build()


def test_a_model_that_cannot_be_built_leaves_the_encoders_alone() -> None:
    nets = encoders()
    with refuses(ConfigError, "'cross.video.*'", f"cross.text.{LAYER}"):
        cola(nets, prior={"cross.video.*": zero_normal()})
    assert not adapted_layers(nets)


def test_a_layer_outside_its_model_says_why_it_cannot_run() -> None:
    model, data = cola(), batch()
    with refuses(ConfigError, f"'text.{LAYER}'", "'audio'", "model.adapters_disabled()"):
        model.backbone["text"](input_ids=data.inputs["text.input_ids"])
