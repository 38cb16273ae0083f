"""Blocks described by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.blocks import Block, Blocks, describe_blocks
from tests.helpers import bert
from tests.refusals import refuses

BERT = Block(
    path="encoder.layer.{i}",
    query="encoder.layer.{i}.attention.self.query",
    key="encoder.layer.{i}.attention.self.key",
    value="encoder.layer.{i}.attention.self.value",
    output="encoder.layer.{i}.attention.output.dense",
    fc1="encoder.layer.{i}.intermediate.dense",
    fc2="encoder.layer.{i}.output.dense",
    residual="encoder.layer.{i}.intermediate.dense",
)


def test_templates_give_what_is_found() -> None:
    assert Blocks.from_templates(bert(3), BERT) == describe_blocks(bert(3))
    assert [block.path for block in Blocks.from_templates(bert(12), BERT)] == [f"encoder.layer.{i}" for i in range(12)]


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        (
            {"query": "encoder.layer.{i}.attention.self.qeury"},
            ("query='encoder.layer.{i}.attention.self.qeury'", "'encoder.layer.0.attention.self.query'"),
        ),
        ({"path": "encoder.layers.{i}"}, ("'encoder.layers.0'", "'encoder.layer.0'", "path='encoder.layers.{i}'")),
        ({"fc1": "encoder.layer.0.intermediate.dense"}, ("fc1='encoder.layer.0.intermediate.dense'", "{i}")),
        ({"residual": "embeddings.{i}"}, ("residual='embeddings.{i}'", "'embeddings.0'")),
    ],
)
def test_bad_templates(change: dict[str, str], facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        Blocks.from_templates(bert(), replace(BERT, **change))


def test_unknown_stage() -> None:
    with refuses(ConfigError, "stage", "'contxt'", "'context'"):
        BERT.tap("contxt", 0)
