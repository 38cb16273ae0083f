"""Methods of one encoder on backbones that attend within windows: each draw meets its own example."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import VitDetConfig, VitDetModel

from bayes_adapters import ELBO, Batch, Bernoulli, Frames, adapted_layers, predict, systems
from bayes_adapters.backbones.windows import counted_tokens, window_side, windowed_layers
from bayes_adapters.errors import ConfigError, DataError, FoldError
from bayes_adapters.guides import Contextual, CrossAttention, Delta, MCDropout, MeanField
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.models import AdapterDropout, DiagonalCore, LoRA, StochasticCore, StochasticDown, Wander
from tests.helpers import CONTEXT, Linear, bert, fill_B, swin, vit, whisper
from tests.internals import hooks_of
from tests.refusals import refuses

NAMES = {1: ["q_proj", "v_proj", "o_proj"], 2: ["query", "value", "attention.output.dense"]}
SIZE, TOKENS = 3, (64, 64, 16, 16)


def images(pixels: Tensor | None = None) -> Batch:
    rng = torch.Generator().manual_seed(2)
    drawn = torch.randn(SIZE, 3, 16, 16, generator=rng)
    heard = torch.ones(SIZE, 5, dtype=torch.bool)
    heard[1, 2:] = False
    frames = {"audio": Frames(torch.randn(SIZE, 5, CONTEXT, generator=rng), heard)}
    return Batch({"pixel_values": drawn if pixels is None else pixels}, torch.tensor([0.0, 1.0, 1.0]), frames)


def core(version: int = 1, window: int = 2, kind: Any = StochasticCore, **options: Any) -> AdapterModel:
    settings: dict[str, Any] = {"rank": 3, "targets": NAMES[version]} | options
    return fill_B(kind(swin((2, 2), version, window), Bernoulli(), **settings))


MODELS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "core, token": (StochasticCore, {"granularity": "token"}, Contextual),
    "core, sequence": (StochasticCore, {"granularity": "sequence"}, Contextual),
    "core, global": (StochasticCore, {"granularity": "global", "num_data": 9}, MeanField),
    "core, attention": (StochasticCore, {}, lambda m: CrossAttention(m, context_dim=CONTEXT, dim=4)),
    "mask, token": (AdapterDropout, {"granularity": "token", "drop": 0.5}, MCDropout),
    "mask, sequence": (AdapterDropout, {"granularity": "sequence", "drop": 0.5}, MCDropout),
    "mask, global": (AdapterDropout, {"granularity": "global", "drop": 0.5}, MCDropout),
    "A": (StochasticDown, {"num_data": 9}, lambda m: MeanField(m, init_scale=0.5)),
    "diagonal": (DiagonalCore, {"num_data": 9}, lambda m: MeanField(m, init_scale=0.5)),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", list(MODELS))
def test_draws_do_not_depend_on_how_examples_and_samples_are_cut(name: str, version: int) -> None:
    kind, options, guide_type = MODELS[name]
    torch.manual_seed(4)
    model, data = core(version, kind=kind, **options), images().without_targets()
    guide = guide_type(model)
    whole = predict(model, guide, data, num_samples=4, return_samples=True).samples
    cut = predict(model, guide, [data[:1], data[1:]], num_samples=4, chunk_size=3, return_samples=True).samples
    assert whole is not None
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-5)
    assert whole.std(0).min() > 1e-4


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_the_core_by_hand_in_every_window(granularity: str, version: int) -> None:
    model, data = core(version, granularity=granularity), images()
    guide = Contextual(model)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _m, x, y, path=path: seen.update({path: (x[0], y)}))
        for path, layer in adapted_layers(model.backbone).items()
    ]
    with torch.no_grad():
        guide(data)
    for handle in handles:
        handle.remove()
    assert len(seen) == 4 * 3
    for path, (x, y) in seen.items():
        layer, node = adapted_layers(model.backbone)[path], guide.trace.nodes[f"core.{path}"]
        windows = x.shape[0] // SIZE
        assert windows == (16 if "layers.0" in path else 4)
        assert node["fn"].batch_shape == (SIZE,)
        assert node["value"].shape[1] == (windows * 4 if granularity == "token" else 1)
        with torch.no_grad():
            for row in range(len(x)):
                example, window = divmod(row, windows)
                for token in range(4):
                    place = window * 4 + token if granularity == "token" else 0
                    core_value = node["value"][example, place]
                    delta = 16 / 3 * x[row, token] @ layer.lora_A.T @ core_value.T @ layer.lora_B.T
                    found = y[row, token] - layer.base_layer(x[row, token])
                    torch.testing.assert_close(found, delta, rtol=1e-4, atol=1e-5)
        if granularity == "sequence":
            expected = (x @ layer.lora_A.T).reshape(SIZE, -1, 3).mean(1, keepdim=True)
            torch.testing.assert_close(node["infer"]["site"].z, expected.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_masks_by_hand_in_every_window(granularity: str) -> None:
    model, data = core(kind=AdapterDropout, granularity=granularity, drop=0.5), images()
    path = model.layers[0]
    layer, seen = adapted_layers(model.backbone)[path], []
    handle = layer.register_forward_hook(lambda _m, x, y: seen.append((x[0], y)))
    guide = MCDropout(model)
    with torch.no_grad():
        guide(data)
        handle.remove()
        (x, y), mask = seen[0], guide.trace.nodes[f"mask.{path}"]["value"]
        mask = mask.expand(SIZE, 64, -1).reshape(x.shape)
        delta = 16 / 3 * (x * mask / 0.5) @ layer.lora_A.T @ layer.lora_B.T
        torch.testing.assert_close(y - layer.base_layer(x), delta, rtol=1e-4, atol=1e-5)


def test_flipout_has_one_function_an_example() -> None:
    """In one-coloured images all windows of the first block see the same, and so do all tokens."""
    model = core(kind=StochasticDown, num_data=9, flipout=True).train()
    guide, path, seen = MeanField(model, init_scale=0.5), model.layers[0], []
    handle = model.backbone.get_submodule(path).register_forward_hook(lambda _m, _x, y: seen.append(y))
    torch.manual_seed(3)
    with torch.no_grad():
        guide(images(torch.ones(SIZE, 3, 16, 16)))
    handle.remove()
    rows = seen[0].reshape(SIZE, 64, -1)
    torch.testing.assert_close(rows, rows[:, :1].expand_as(rows), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rows[0, 0], rows[1, 0], atol=1e-3)
    assert not torch.allclose(rows[1, 0], rows[2, 0], atol=1e-3)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("granularity", ["token", "sequence"])
def test_padding_up_to_whole_windows_has_no_draw(granularity: str, version: int) -> None:
    model = core(version, window=3, granularity=granularity)
    with refuses(DataError, 81, 64, "granularity='global'"):
        Contextual(model)(images())
    assert hooks_of(model.backbone) == 0
    whole = core(version, window=3, targets=["fc1"] if version == 1 else ["intermediate.dense"])
    Contextual(whole)(images())  # the feed-forward part sees no padding


@pytest.mark.parametrize("version", [1, 2])
def test_padding_does_not_matter_where_draws_are_not_counted(version: int) -> None:
    for kind, options in ((LoRA, {}), (StochasticCore, {"granularity": "global", "num_data": 9})):
        model = core(version, window=3, kind=kind, **options)
        guide = Delta(model)
        whole = predict(model, guide, images().without_targets(), num_samples=2)
        assert bool(whole.mean.isfinite().all())


@pytest.mark.parametrize(
    ("kind", "options", "guide"),
    [
        (StochasticCore, {}, Contextual),
        (StochasticCore, {"granularity": "global", "num_data": 9}, MeanField),
        (StochasticDown, {"num_data": 9}, MeanField),
        (StochasticDown, {"num_data": 9, "flipout": True}, MeanField),
        (AdapterDropout, {}, MCDropout),
    ],
)
def test_layers_that_see_no_examples_have_no_draws(kind: Any, options: dict[str, Any], guide: Any) -> None:
    """Swin V2 makes its position biases from a table: the same for all examples and samples."""
    model = core(2, kind=kind, targets="all-linear", **options)
    with refuses(DataError, "exclude=['continuous_position_bias_mlp.0']"):
        guide(model)(images())


def test_plain_lora_adapts_the_table_and_the_systems_leave_it_out() -> None:
    model = core(2, kind=LoRA, targets="all-linear")
    guide = Delta(model)
    ELBO(model, guide)(images()).backward()
    table = [layer for path, layer in adapted_layers(model.backbone).items() if "position_bias" in path]
    assert len(table) == 8
    assert all(layer.lora_A.grad.abs().max() > 0 for layer in table)
    model, _ = systems.build("bayeslora-2025", swin((2, 2), 2), Bernoulli(), rank=2)
    assert len(model.layers) == 4 * 6 + 1
    assert not any("position_bias" in path for path in model.layers)


class _Transposing(nn.Module):
    """A backbone whose layer sees (T, B, d), with T a multiple of B."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"hidden_size": 3})()
        self.query = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": self.query(x.transpose(0, 1)).transpose(0, 1)})()


def test_only_blocks_with_windows_may_cut_examples() -> None:
    model = fill_B(StochasticCore(_Transposing(), Bernoulli(), targets=["query"], rank=2))
    with refuses(FoldError, "'query'", 6, "3 examples"):
        Contextual(model)(Batch({"x": torch.randn(3, 6, 4)}))


@pytest.mark.parametrize("version", [1, 2])
def test_blocks_with_windows_are_found_and_their_tokens_counted(version: int) -> None:
    net = swin((2, 2), version)
    # its windows are cut from (B, d, H, W), and its attention has one layer for query, key and value
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
    vitdet = VitDetModel(VitDetConfig(**sizes, patch_size=4, window_block_indices=[0], window_size=2))
    for other in (bert(), vit(), whisper(), Linear(), vitdet):
        assert all(window_side(m) is None for m in other.modules())
    query = NAMES[version][0] if version == 1 else "self.query"
    inside = "encoder.layers.1.blocks.0.attention." + query
    outside = "encoder.layers.0.downsample.reduction"
    assert net.get_submodule(inside) is not net.get_submodule(outside)
    assert windowed_layers(net, [inside, outside]) == {inside: "encoder.layers.1.blocks.0"}
    blocks = [f"encoder.layers.{s}.blocks.{i}" for s in range(2) for i in range(2)]
    counts: dict[str, int] = {}
    with torch.no_grad(), counted_tokens(net, blocks, counts):
        net(images().inputs["pixel_values"])
    assert counts == dict(zip(blocks, TOKENS, strict=True))
    assert hooks_of(net) == 0


def test_fusion_after_every_layer_needs_one_width() -> None:
    nets = nn.ModuleDict({"image": swin((1, 1)), "text": bert(2)})
    lengths = {"image": 4, "text": 4}
    with refuses(ConfigError, 16, "'image'", [8, 16], "every_layer=False"):
        Wander(nets, Bernoulli(), num_data=9, lengths=lengths, fusion_rank=2, terms=2, every_layer=True)
    assert not adapted_layers(nets)
