"""Blocks are found by structure; other structures are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
import transformers as hf
from torch import nn

from bayes_adapters.adapters.installation import install
from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.blocks import Stage, describe_blocks
from bayes_adapters.modalities.lockstep import run
from tests.helpers import bert, gpt2, vit
from tests.internals import hooks_of
from tests.modalities.blocks.parts import IDS, SPEECH, TEXT, Part, bart
from tests.refusals import refuses


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_describing_leaves_the_module_alone(device: str) -> None:
    module = bert().to(device).train()
    module.get_submodule("encoder.layer.0.output").eval()
    modes = [m.training for m in module.modules()]
    state = torch.get_rng_state()
    blocks = describe_blocks(module)
    assert blocks.layers == ("encoder.layer.0", "encoder.layer.1")
    assert modes == [m.training for m in module.modules()]
    assert torch.equal(state, torch.get_rng_state())
    assert hooks_of(module) == 0
    assert all(p.grad is None for p in module.parameters())


def test_paths_stay_valid_with_adapters() -> None:
    module = bert()
    blocks = describe_blocks(module)
    install(module, [path for block in blocks for path in block.linears], rank=2, alpha=4.0)
    taps = [block.tap(stage, 4 * i + j) for i, block in enumerate(blocks) for j, stage in enumerate(Stage)]
    seen: list[int] = []
    run({"a": module}, {"a": IDS}, {"a": taps}, lambda step, x: (seen.append(step), {})[1])
    assert seen == list(range(8))
    with refuses(ConfigError, "BertModel", "bayes_adapters.remove(backbone)"):
        describe_blocks(module)


def test_blocks_without_a_prefix() -> None:
    """The encoder may be the list of blocks itself."""
    layers = bert().get_submodule("encoder.layer")
    assert describe_blocks(layers).layers == ("0", "1")
    assert describe_blocks(layers)[1].query == "1.attention.self.query"


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("hidden", ("query", "fc1")),
        ("parallel", ("query", "fc1")),
        ("silent", (["value"],)),
        ("gated", (4, ["out", "up", "gate", "down"])),
        ("broken", ((2, 2, 4), "no such window")),
    ],
)
def test_other_structures_are_refused(kind: str, facts: tuple[object, ...]) -> None:
    module = nn.ModuleList([Part(kind), Part(kind)])
    with refuses(ConfigError, "Part at '0'", *facts):
        describe_blocks(module)
    assert hooks_of(module) == 0
    assert all(m.training for m in module.modules())


def test_a_block_without_any_norm() -> None:
    blocks = describe_blocks(nn.ModuleList([Part("post")]))
    assert asdict(blocks[0]) == {
        "path": "0",
        "query": "0.query",
        "key": "0.key",
        "value": "0.value",
        "output": "0.out",
        "fc1": "0.up",
        "fc2": "0.down",
        "residual": "0.up",
    }


def test_a_layer_before_attention_has_no_role() -> None:
    blocks = describe_blocks(nn.ModuleList([Part("gate first")]))
    assert blocks[0].linears == ("0.query", "0.key", "0.value", "0.out", "0.up", "0.down")
    assert blocks[0].residual == "0.up"


def test_the_innermost_list_holds_the_blocks() -> None:
    """ALBERT has lists of layers within a list of groups."""
    config = hf.AlbertConfig(**TEXT, embedding_size=8, num_hidden_groups=3)
    with refuses(ConfigError, "AlbertModel", "'encoder.albert_layer_groups.0.albert_layers'", "model.get_encoder()"):
        describe_blocks(hf.AlbertModel(config))


def wavlm() -> nn.Module:
    return hf.WavLMModel(hf.WavLMConfig(**SPEECH))


@pytest.mark.parametrize(
    ("build", "facts"),
    [
        (wavlm, ("WavLMEncoderLayer at 'encoder.layers.0'", [f"attention.{n}_proj" for n in "qkv"])),
        (gpt2, ("GPT2Model", "c_attn")),
        (lambda: bart("decoder"), ("BartDecoder", "fc1, fc2, k_proj, out_proj, q_proj, v_proj")),
        (
            lambda: nn.ModuleDict({"a": bert(), "b": vit()}),
            ("ModuleDict", ["a.encoder.layer", "b.layers"]),
        ),
        (lambda: nn.ModuleList([Part("post"), *bert().get_submodule("encoder.layer")]), ("BertLayer", "Part")),
        (lambda: nn.Linear(2, 2), ("Linear", "none")),
    ],
)
def test_encoders_that_cannot_be_described(build: Callable[[], nn.Module], facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        describe_blocks(build())


def test_near_names_are_listed() -> None:
    module = nn.ModuleList([nn.ModuleDict({n: nn.Linear(2, 2) for n in ("qeury", "key", "value")})])
    with refuses(ConfigError, "ModuleList", "'qeury'"):
        describe_blocks(module)
