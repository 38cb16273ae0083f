"""Blocks are found by structure, their taps hold what they say, and depths are paired as documented."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from bayes_adapters.blocks import Block, Blocks, Stage, describe_blocks
from bayes_adapters.depths import DepthMap, depth_map
from bayes_adapters.errors import ConfigError
from bayes_adapters.layer import install
from bayes_adapters.lockstep import run
from tests.helpers import VOCAB, WIDTH, bert, gpt2, vit, whisper

COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}
TEXT: dict[str, Any] = {"vocab_size": VOCAB, **COMMON}
IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 8, **COMMON}
SPEECH: dict[str, Any] = {
    "conv_dim": (8, 8),
    "conv_stride": (2, 2),
    "conv_kernel": (3, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    **COMMON,
}


def bart(part: str = "encoder") -> nn.Module:
    sides = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 3), ("ffn_dim", 24))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = hf.BartModel(hf.BartConfig(vocab_size=VOCAB, d_model=WIDTH, **sides, **heads))
    return model.get_submodule(part)


def distilbert() -> nn.Module:
    return hf.DistilBertModel(hf.DistilBertConfig(vocab_size=VOCAB, dim=WIDTH, n_layers=3, n_heads=2, hidden_dim=24))


def ast() -> nn.Module:
    return hf.ASTModel(hf.ASTConfig(**COMMON, max_length=32, num_mel_bins=16, patch_size=8))


IDS = {"input_ids": torch.arange(10).reshape(2, 5) + 2}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16).sin()}
SOUND = {"input_values": torch.linspace(-9, 9, 80).reshape(2, 40).sin()}
MEL = {"input_features": torch.linspace(-9, 9, 320).reshape(2, 8, 20).sin()}
SPECTRUM = {"input_values": torch.linspace(-9, 9, 1024).reshape(2, 32, 16).sin()}
POST, PRE = False, True
ENCODERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor], bool]] = {
    "bert": (lambda: bert(3), IDS, POST),
    "roberta": (lambda: hf.RobertaModel(hf.RobertaConfig(**TEXT)), IDS, POST),
    "electra": (lambda: hf.ElectraModel(hf.ElectraConfig(embedding_size=8, **TEXT)), IDS, POST),
    "mpnet": (lambda: hf.MPNetModel(hf.MPNetConfig(**TEXT)), IDS, POST),
    "distilbert": (distilbert, IDS, POST),
    "bart": (bart, IDS, POST),
    "vit": (lambda: vit(3), PIXELS, PRE),
    "deit": (lambda: hf.DeiTModel(hf.DeiTConfig(**IMAGE)), PIXELS, PRE),
    "dinov2": (lambda: hf.Dinov2Model(hf.Dinov2Config(**IMAGE)), PIXELS, PRE),
    "clip": (lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**IMAGE)), PIXELS, PRE),
    "siglip": (lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**IMAGE)), PIXELS, PRE),
    "ast": (ast, SPECTRUM, PRE),
    "whisper": (lambda: whisper(3), MEL, PRE),
    "wav2vec2": (lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SPEECH)), SOUND, POST),
    "wav2vec2 pre-norm": (
        lambda: hf.Wav2Vec2Model(hf.Wav2Vec2Config(**SPEECH, do_stable_layer_norm=True)),
        SOUND,
        PRE,
    ),
    "hubert": (lambda: hf.HubertModel(hf.HubertConfig(**SPEECH)), SOUND, POST),
    "hubert pre-norm": (lambda: hf.HubertModel(hf.HubertConfig(**SPEECH, do_stable_layer_norm=True)), SOUND, PRE),
}
"""name → how to build it (three blocks), what to call it with, whether a norm comes before attention."""


def encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    return ENCODERS[name][0]().eval()


@pytest.mark.parametrize("name", list(ENCODERS))
def test_stages_hold_what_they_say(name: str) -> None:
    """Recompute the rest of each block from its taps; the descriptions of all stages are checked by that."""
    module, (_, call, pre) = encoder(name), ENCODERS[name]
    blocks = describe_blocks(module)
    assert len(blocks) == len(blocks.layers) == 3
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Any] = {}

    def note(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
            outputs[path] = out[0] if isinstance(out, tuple) else out
            inputs[path] = args[0] if args else kwargs.get("hidden_states")

        return hook

    handles = [m.register_forward_hook(note(p), with_kwargs=True) for p, m in module.named_modules() if p]
    taps = [block.tap(stage, 10 * i + j) for i, block in enumerate(blocks) for j, stage in enumerate(Stage)]
    seen: dict[int, Tensor] = {}
    with torch.no_grad():
        run({"x": module}, {"x": call}, {"x": taps}, lambda step, x: (seen.update({step: x["x"]}), {})[1])
    for handle in handles:
        handle.remove()
    for i, block in enumerate(blocks):
        start, context, middle, end = (seen[10 * i + j] for j in range(4))
        assert torch.equal(start, inputs[block.path])
        assert torch.equal(end, outputs[block.path])
        parts: list[Any] = [module.get_submodule(path) for path in block.linears]
        assert torch.equal(parts[3](context), outputs[block.output])
        assert [p.in_features for p in parts] == [WIDTH] * 5 + [parts[5].in_features]
        assert parts[5].in_features == parts[4].out_features > WIDTH
        same = inputs[block.query] is inputs[block.key] is inputs[block.value]
        assert same, "query, key and value see one tensor"
        # What attention adds before, and the feed-forward part after, the tap: in pre-norm blocks both are plain sums.
        scale1, scale2 = (outputs.get(f"{block.path}.layer_scale{k}") for k in (1, 2))
        attended = outputs[block.output] if scale1 is None else scale1
        fed = outputs[block.fc2] if scale2 is None else scale2
        if pre:
            torch.testing.assert_close(middle, start + attended)
            torch.testing.assert_close(end, middle + fed)
            assert torch.equal(module.get_submodule(block.residual)(middle), inputs[block.fc1])
        else:
            norm = next(
                m
                for p, m in module.named_modules()
                if p.startswith(block.path) and outputs.get(p) is outputs[block.path] and isinstance(m, nn.LayerNorm)
            )
            torch.testing.assert_close(end, norm(middle + fed))
            assert middle is inputs[block.fc1]
            assert not torch.allclose(middle, start + attended), "the first norm has been applied"


@pytest.mark.parametrize("name", list(ENCODERS))
def test_query_key_and_value_are_told_apart(name: str) -> None:
    """Keys of all tokens moved by one vector leave attention as it is; so do not queries or values."""
    module, call = encoder(name), ENCODERS[name][1]
    block = describe_blocks(module)[1]
    with torch.no_grad():
        for path in block.linears[:3]:  # large enough that attention is not uniform
            module.get_submodule(path).weight.mul_(20)
        plain = module(**call)[0]
        for role in ("query", "key", "value"):
            layer: Any = module.get_submodule(getattr(block, role))
            handle = layer.register_forward_hook(lambda _m, _a, out: out + torch.linspace(-3, 3, WIDTH))
            changed = not torch.allclose(module(**call)[0], plain, atol=1e-4)
            handle.remove()
            assert changed == (role != "key"), role


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
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert all(p.grad is None for p in module.parameters())


def test_paths_stay_valid_with_adapters() -> None:
    module = bert()
    blocks = describe_blocks(module)
    install(module, [path for block in blocks for path in block.linears], rank=2, alpha=4.0)
    taps = [block.tap(stage, 4 * i + j) for i, block in enumerate(blocks) for j, stage in enumerate(Stage)]
    seen: list[int] = []
    run({"a": module}, {"a": IDS}, {"a": taps}, lambda step, x: (seen.append(step), {})[1])
    assert seen == list(range(8))
    with pytest.raises(ConfigError, match="already has adapters"):
        describe_blocks(module)


def test_blocks_without_a_prefix() -> None:
    """The encoder may be the list of blocks itself."""
    layers = bert().get_submodule("encoder.layer")
    assert describe_blocks(layers).layers == ("0", "1")
    assert describe_blocks(layers)[1].query == "1.attention.self.query"


class Part(nn.Module):
    """A block made to order: norms, an extra layer, layers that are not called."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        for name in ("query", "key", "value", "out", "up", "down", "gate"):
            self.add_module(name, nn.Linear(4, 4))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        get = self.get_submodule
        if self.kind == "gate first":
            get("gate")(x)
        h = x if self.kind in ("post", "gate first") else x + 0 if self.kind == "hidden" else self.norm(x)
        value = nn.functional.linear(h, get("value").weight) if self.kind == "silent" else get("value")(h)
        h2 = x + get("out")(get("query")(h) * get("key")(h) + value)
        h2 = h if self.kind == "parallel" else h2
        if self.kind == "broken":
            raise IndexError("no such window")
        up = get("up")(h2)
        return h2 + get("down")(up * get("gate")(h2) if self.kind == "gated" else up)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("hidden", "neither post-norm"),
        ("parallel", "neither post-norm"),
        ("silent", r"does not call its layers \['value'\]"),
        ("gated", r"calls 4 linear layers besides query, key and value, \['out', 'up', 'gate', 'down'\]"),
        ("broken", r"cannot be run alone on a tensor of shape \(1, 2, 4\): no such window"),
    ],
)
def test_other_structures_are_refused(kind: str, says: str) -> None:
    module = nn.ModuleList([Part(kind), Part(kind)])
    with pytest.raises(ConfigError, match=says) as caught:
        describe_blocks(module)
    assert "Part at '0'" in str(caught.value)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
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
    with pytest.raises(
        ConfigError, match=r"several lists of blocks, \['encoder.albert_layer_groups.0.albert_layers', "
    ):
        describe_blocks(hf.AlbertModel(config))


def wavlm() -> nn.Module:
    return hf.WavLMModel(hf.WavLMConfig(**SPEECH))


def swin() -> nn.Module:
    config = hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=2, image_size=16, patch_size=2)
    return hf.SwinModel(config)


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (wavlm, "does not call its layers"),
        (gpt2, "has no list of blocks"),
        (swin, "several lists of blocks, .*a list per stage"),
        (lambda: bart("decoder"), "has no list of blocks"),
        (
            lambda: nn.ModuleDict({"a": bert(), "b": vit()}),
            r"several lists of blocks, \['a.encoder.layer', 'b.layers'\]",
        ),
        (lambda: nn.ModuleList([Part("post"), *bert().get_submodule("encoder.layer")]), "of different kinds"),
        (lambda: nn.Linear(2, 2), "Its linear layers end in: "),
    ],
)
def test_encoders_that_cannot_be_described(build: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        describe_blocks(build())


def test_near_names_are_listed() -> None:
    module = nn.ModuleList([nn.ModuleDict({n: nn.Linear(2, 2) for n in ("qeury", "key", "value")})])
    with pytest.raises(ConfigError, match="Did you mean 'qeury'"):
        describe_blocks(module)


# ---- by hand

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


# ---- depths


def test_depth_maps_by_hand() -> None:
    assert depth_map(3, 3) == [(0, 0), (1, 1), (2, 2)]
    assert depth_map(24, 12, "every-k") == [(2 * j + 1, j) for j in range(12)]
    assert depth_map(2, 6, "every-k") == [(0, 2), (1, 5)]
    assert depth_map(6, 4, "spread") == [(0, 0), (2, 1), (3, 2), (5, 3)]
    assert depth_map(4, 6, "spread") == [(0, 0), (1, 2), (2, 3), (3, 5)]
    assert depth_map(12, 5, "spread") == [(1, 0), (3, 1), (6, 2), (8, 3), (11, 4)]


@given(st.integers(1, 60), st.integers(1, 60))
def test_spread_is_even_and_agrees_with_the_other_kinds(n: int, m: int) -> None:
    pairs = depth_map(n, m, DepthMap.SPREAD)
    deep, shallow = max(n, m), min(n, m)
    assert len(pairs) == shallow
    assert pairs[-1] == (n - 1, m - 1)
    ours = [max(pair) if n != m else pair[0] for pair in pairs]
    gaps = {b - a for a, b in zip([-1, *ours[:-1]], ours, strict=True)}
    assert gaps <= {deep // shallow, -(-deep // shallow)}, "two neighbours are as near as any other two, within one"
    assert sorted(pairs) == pairs
    assert depth_map(m, n, "spread") == [(j, i) for i, j in pairs]
    if n == m:
        assert depth_map(n, m, "same") == pairs
    if deep % shallow == 0:
        assert depth_map(n, m, "every-k") == pairs


@pytest.mark.parametrize(
    ("n", "m", "kind", "says"),
    [
        (12, 6, "same", "needs equal depths; got 12 and 6. Use 'every-k'"),
        (6, 4, "same", "Use 'spread'"),
        (6, 4, "every-k", "multiple of the other; got 6 and 4. Use 'spread'"),
        (0, 4, "spread", "at least one block; got depths 0 and 4"),
        (4, 4, "sprad", "Unknown depth map 'sprad'. Did you mean 'spread'"),
    ],
)
def test_depths_that_do_not_fit(n: int, m: int, kind: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        depth_map(n, m, kind)
