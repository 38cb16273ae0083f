"""Taps of the blocks of many encoders hold what they say, and query, key and value are told apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from bayes_adapters.modalities.blocks import Stage, describe_blocks
from bayes_adapters.modalities.lockstep import run
from tests.helpers import VOCAB, WIDTH, bert, vit, whisper
from tests.modalities.blocks.parts import COMMON, IDS, IMAGE, SPEECH, TEXT, bart


def distilbert() -> nn.Module:
    return hf.DistilBertModel(hf.DistilBertConfig(vocab_size=VOCAB, dim=WIDTH, n_layers=3, n_heads=2, hidden_dim=24))


def ast() -> nn.Module:
    return hf.ASTModel(hf.ASTConfig(**COMMON, max_length=32, num_mel_bins=16, patch_size=8))


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
