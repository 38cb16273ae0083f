"""Blocks described by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.blocks import Block, Blocks, describe_blocks
from tests.helpers import bert

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
    ("change", "says"),
    [
        ({"query": "encoder.layer.{i}.attention.self.qeury"}, "template query=.* Did you mean '.*self.query'"),
        ({"path": "encoder.layers.{i}"}, "no module 'encoder.layers.0'.* Did you mean 'encoder.layer.0'"),
        ({"fc1": "encoder.layer.0.intermediate.dense"}, "template fc1=.* has no {i}"),
        ({"residual": "embeddings.{i}"}, "template residual="),
    ],
)
def test_bad_templates(change: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Blocks.from_templates(bert(), replace(BERT, **change))


def test_unknown_stage() -> None:
    with pytest.raises(ConfigError, match=r"Unknown stage 'contxt'. Did you mean 'context'"):
        BERT.tap("contxt", 0)
