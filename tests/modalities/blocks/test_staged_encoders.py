"""Encoders with one list of blocks per stage, whose blocks attend within windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from bayes_adapters.adapters.installation import install
from bayes_adapters.errors import ConfigError
from bayes_adapters.modalities.blocks import Block, Blocks, Stage, describe_blocks, stage_width
from bayes_adapters.modalities.lockstep import run
from tests.helpers import bert, swin
from tests.internals import hooks_of
from tests.modalities.blocks.parts import TEXT, Part
from tests.refusals import refuses

PIXELS = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).sin()
PATHS = ("encoder.layers.0.blocks.0", *(f"encoder.layers.1.blocks.{i}" for i in range(3)))


def _settings(module: nn.Module) -> dict[str, Any]:
    """Everything that a module keeps beside its tensors and submodules."""
    return {
        f"{path}.{name}": value
        for path, part in module.named_modules()
        for name, value in vars(part).items()
        if isinstance(value, int | bool | tuple)
    }


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("version", [1, 2])
def test_blocks_are_those_of_all_stages_and_the_module_is_left_alone(version: int, device: str) -> None:
    module = swin((1, 3), version).to(device).train()
    before, state = _settings(module), torch.get_rng_state()
    blocks = describe_blocks(module)
    assert blocks.layers == PATHS
    assert _settings(module) == before
    assert torch.equal(state, torch.get_rng_state())
    assert hooks_of(module) == 0
    install(module, [path for block in blocks for path in block.linears], rank=2, alpha=4.0)
    for stage in Stage:
        assert [stage_width(module, block, stage) for block in blocks] == [8, 16, 16, 16]


@pytest.mark.parametrize("version", [1, 2])
def test_stages_hold_what_they_say(version: int) -> None:
    """In the order of execution; and the rest of each block is recomputed from its taps."""
    module = swin((1, 3), version)
    blocks = describe_blocks(module)
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}
    order: list[str] = []

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            order.append(path)
            inputs[path], outputs[path] = args[0], out[0] if isinstance(out, tuple) else out

        return hook

    noted = [p for p, m in module.named_modules() if p in PATHS or isinstance(m, nn.Linear | nn.LayerNorm)]
    handles = [module.get_submodule(path).register_forward_hook(note(path)) for path in noted]
    taps = [block.tap(stage, 4 * i + j) for i, block in enumerate(blocks) for j, stage in enumerate(Stage)]
    seen: dict[int, Tensor] = {}
    with torch.no_grad():
        run(
            {"x": module},
            {"x": {"pixel_values": PIXELS}},
            {"x": taps},
            lambda step, x: (seen.update({step: x["x"]}), {})[1],
        )
    for handle in handles:
        handle.remove()
    assert [path for path in order if path in PATHS] == list(PATHS)
    for i, block in enumerate(blocks):
        start, context, middle, end = (seen[4 * i + j] for j in range(4))
        norms = [module.get_submodule(f"{block.path}.layernorm_{which}") for which in ("before", "after")]
        attended, fed = outputs[block.output], outputs[block.fc2]
        assert torch.equal(module.get_submodule(block.output)(context), attended)
        assert context.shape == (2 * start.shape[1] // 4, 4, start.shape[2]), "windows of 2 × 2 tokens"
        if version == 2:  # its norms come after attention and after the feed-forward part, before each sum
            attended, fed = norms[0](attended), norms[1](fed)
            assert middle is inputs[block.fc1]
        else:
            assert torch.equal(norms[1](middle), inputs[block.fc1])
        torch.testing.assert_close(end, middle + fed)
        # windows reorder tokens and do not change their sum
        expected = start.sum(1) + attended.reshape(2, -1, start.shape[2]).sum(1)
        torch.testing.assert_close(middle.sum(1), expected, rtol=1e-4, atol=1e-4)


def test_a_block_by_hand_without_linear_layers_is_as_wide_as_the_output() -> None:
    module = bert()
    block = Block(*["encoder.layer.0"] * 8)
    assert {stage_width(module, block, stage) for stage in Stage} == {module.config.hidden_size}


def test_blocks_of_stages_by_hand() -> None:
    module = swin((1, 3))
    by_stage = []
    for stage in range(2):
        path = f"encoder.layers.{stage}.blocks.{{i}}"
        own = [f"{path}.attention.{role}_proj" for role in "qkvo"]
        block = Block(path, *own, f"{path}.mlp.fc1", f"{path}.mlp.fc2", residual=f"{path}.layernorm_after")
        by_stage.append(Blocks.from_templates(module, block))
    assert Blocks((*by_stage[0], *by_stage[1])) == describe_blocks(module)


def test_stochastic_depth_does_not_matter() -> None:
    for config, model in ((hf.SwinConfig, hf.SwinModel), (hf.Swinv2Config, hf.Swinv2Model)):
        sizes = {"embed_dim": 8, "depths": [1, 3], "num_heads": [2, 2], "window_size": 2, "image_size": 16}
        found = [describe_blocks(model(config(**sizes, patch_size=2, drop_path_rate=rate))) for rate in (0.0, 0.5)]
        assert found[0] == found[1]
        assert found[0].layers == PATHS


def _stage(width: int, out: int | None) -> nn.Module:
    block = Part("post")
    for name in ("query", "key", "value", "out", "up", "down"):
        setattr(block, name, nn.Linear(width, width))
    stage = nn.ModuleDict({"blocks": nn.ModuleList([block])})
    if out is not None:
        stage["merge"] = nn.Linear(4, out)
    return stage


def test_stages_are_told_from_encoders_side_by_side() -> None:
    """A stage makes the next one's width, and no two widths are equal."""
    assert len(describe_blocks(nn.ModuleList([_stage(4, 6), _stage(6, 8), _stage(8, None)]))) == 3


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.ModuleList([_stage(4, 4), _stage(4, None)]),
        lambda: nn.ModuleList([_stage(4, None), _stage(6, None)]),
        lambda: nn.ModuleList([_stage(4, 6), _stage(6, None), _stage(8, None)]),
        lambda: nn.ModuleDict({"a": _stage(4, 6), "b": _stage(6, None)}),
        lambda: nn.ModuleList([_stage(4, 6), nn.Linear(4, 6), _stage(6, None)]),
        lambda: nn.ModuleList([bert(), bert()]),
        lambda: hf.PvtModel(hf.PvtConfig(depths=[1, 1, 1, 1])),
        lambda: hf.AlbertModel(hf.AlbertConfig(**TEXT, embedding_size=8, num_hidden_groups=3)),
    ],
)
def test_other_lists_side_by_side_are_refused(build: Callable[[], nn.Module]) -> None:
    encoder = build()
    with refuses(ConfigError, type(encoder).__name__, "model.get_encoder()"):
        describe_blocks(encoder)
