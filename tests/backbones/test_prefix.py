"""What comes before the first adapted layer runs for B rows, and every number is that of S·B rows from the start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, CLIPTextConfig, CLIPTextModel

from bayes_adapters import ELBO, AdapterGuide, Batch, Bernoulli, Frames, adapted_layers, predict
from bayes_adapters.adapters.targets import select
from bayes_adapters.backbones.prefix import STACKED, frozen_prefix
from bayes_adapters.guides import Contextual, CrossAttention, MCDropout, MeanField, RankWise
from bayes_adapters.heads import BackboneOutput, LinearHead
from bayes_adapters.models import AdapterDropout, StochasticCore, StochasticFactors
from tests.backbones.stacked import TYPES, WIDTH, backbone, batch, whisper_encoder
from tests.helpers import deberta_v3

FRAMES = 6


def last_block(net: nn.Module) -> list[str]:
    """The first and the last linear layer of the last block that has any."""
    every = [p for p in select(net, "all-linear") if not {"pooler", "continuous_position_bias_mlp"} & {*p.split(".")}]
    number = [next((i for i, part in enumerate(p.split(".")) if part.isdigit()), None) for p in every]
    inside = [(p, p.split(".")[: i + 1]) for p, i in zip(every, number, strict=True) if i is not None]
    last = [p for p, block in inside if block == inside[-1][1]]
    return [last[0], last[-1]]


def core_guide(net: nn.Module, granularity: str, layers: Sequence[str], **options: Any) -> AdapterGuide:
    model = StochasticCore(
        net, Bernoulli(), targets=list(layers), rank=2, granularity=granularity, num_data=10, **options
    )
    torch.manual_seed(1)
    guide: AdapterGuide = MeanField(model) if granularity == "global" else Contextual(model)
    return filled(guide)


def filled(guide: Any) -> Any:
    torch.manual_seed(2)
    with torch.no_grad():
        for layer in adapted_layers(guide.model.backbone).values():
            if layer.lora_B is not None:
                layer.lora_B.normal_(0.0, 0.5)
    return guide


def numbers(guide: Any, data: Batch, samples: int) -> tuple[list[Tensor], set[int]]:
    """Each draw's prediction, the loss and all gradients of as many particles; and the rows the backbone was given."""
    model, rows = guide.model, set()

    def note(_module: nn.Module, _args: Any, kwargs: Any) -> None:
        rows.add(next(iter(kwargs.values())).shape[0])

    handle = model.backbone.register_forward_pre_hook(note, with_kwargs=True)
    found = predict(model, guide, data, num_samples=samples, chunk_size=samples, return_samples=True)
    loss = ELBO(model, guide, num_particles=samples)
    torch.manual_seed(5)
    value = loss(data)
    loss.zero_grad()
    value.backward()
    handle.remove()
    assert found.samples is not None
    assert found.log_density is not None
    gradients = [p.grad for p in loss.parameters() if p.grad is not None]
    return [found.samples, found.log_density, value.detach(), *gradients], rows


def require_equal(guide: Any, data: Batch, samples: int = 3, tolerance: float = 1e-6) -> None:
    """Compare with S·B rows from the start, and see that the prefix has run for B rows."""
    model = guide.model
    known = model._traits
    assert known.prefix is not None
    found, rows = numbers(guide, data, samples)
    model._traits = replace(known, prefix=None)
    whole, full = numbers(guide, data, samples)
    model._traits = known
    assert (rows, full) == ({data.size}, {samples * data.size})
    assert len(found) == len(whole) > 3
    for one, other in zip(found, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance / 1000)


def test_every_type_that_is_known_is_tried() -> None:
    assert set(TYPES) == STACKED


@pytest.mark.parametrize("granularity", ["global", "token"])
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_draw_sees_what_it_sees_without_a_prefix(kind: str, granularity: str) -> None:
    net = backbone(kind)
    require_equal(
        core_guide(net, granularity, last_block(net)), batch(TYPES[kind][1]), 2 if granularity == "token" else 16
    )


def test_in_single_precision() -> None:
    net = backbone("bert").float()
    require_equal(core_guide(net, "token", last_block(net)), batch("text"), 16, tolerance=1e-5)


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("kind", ["bert", "llama", "t5", "swin"])
def test_one_example_and_as_many_as_tokens(kind: str, size: int) -> None:
    net = backbone(kind)
    require_equal(core_guide(net, "token", last_block(net)), batch(TYPES[kind][1], size, tokens=7))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "wav2vec2"])
def test_with_every_block_adapted_the_embeddings_are_the_prefix(kind: str) -> None:
    suffixes = {"bert": ["query", "value"], "gpt2": ["c_attn"], "wav2vec2": ["q_proj", "v_proj"]}[kind]
    net = backbone(kind)
    require_equal(core_guide(net, "token", select(net, suffixes)), batch(TYPES[kind][1]))


def test_whispers_encoder_alone() -> None:
    net = whisper_encoder()
    require_equal(core_guide(net, "token", last_block(net)), batch("sound"))


@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_padding_on_the_left_and_none(kind: str, side: str) -> None:
    inputs = dict(batch("text").inputs)
    inputs["attention_mask"] = inputs["attention_mask"].flip(1)
    if side == "none":
        del inputs["attention_mask"]
    net = backbone(kind)
    require_equal(core_guide(net, "token", last_block(net)), Batch(inputs, batch("text").targets))


def test_recordings_of_several_lengths() -> None:
    net, data = backbone("wav2vec2"), batch("wave")
    heard, frames = torch.ones(4, 200, dtype=torch.long), torch.ones(4, 24, dtype=torch.long)
    heard[1, 100:], frames[1, 12:] = 0, 0
    inputs = data.inputs | {"attention_mask": heard, "token_mask": frames}
    require_equal(core_guide(net, "token", last_block(net)), Batch(inputs, data.targets))


def test_a_mask_of_attention_scores() -> None:
    inputs = dict(batch("text").inputs)
    real = inputs.pop("attention_mask").bool()
    inputs |= {"attention_mask": (real[:, None, None] & real[:, None, :, None]), "token_mask": real.long()}
    inputs["attention_mask"] = inputs["attention_mask"] | torch.eye(7, dtype=torch.bool)
    net = backbone("bert")
    require_equal(core_guide(net, "token", last_block(net)), Batch(inputs, batch("text").targets))


def test_guides_that_listen_masks_and_ranks() -> None:
    text = batch("text")
    heard = torch.ones(text.size, 5, dtype=torch.bool)
    heard[0] = False
    data = Batch(text.inputs, text.targets, {"audio": Frames(torch.randn(text.size, 5, FRAMES), heard)})
    options: dict[str, Any] = {"targets": last_block(backbone("bert")), "rank": 2}
    model = StochasticCore(backbone("bert"), Bernoulli(), **options)
    require_equal(filled(CrossAttention(model, context_dim=FRAMES, dim=4)), data)
    require_equal(filled(MCDropout(AdapterDropout(backbone("bert"), Bernoulli(), **options))), text)
    factors = StochasticFactors(backbone("bert"), Bernoulli(), num_data=9, **options)
    require_equal(filled(RankWise(factors)), text)


class FirstAndLast(LinearHead):
    """Reads what only the prefix makes, beside the last states."""

    name = "first_and_last"

    def read(self, output: BackboneOutput) -> Tensor:
        return output.hidden.mean(1) + output.value.hidden_states[0].mean(1) * output.value.hidden_states[1].mean(1)


def test_a_head_may_read_what_the_prefix_returns() -> None:
    net = backbone("bert", output_hidden_states=True)
    require_equal(core_guide(net, "token", last_block(net), head=FirstAndLast()), batch("text"))


def test_the_poolers_output() -> None:
    net = backbone("bert")
    require_equal(core_guide(net, "token", last_block(net), pooling="pooler"), batch("text"))


def test_in_training_it_is_shared_where_nothing_is_dropped() -> None:
    for changes, shared in (({}, True), ({"attention_probs_dropout_prob": 0.1}, False)):
        net = backbone("bert", **changes)
        guide = core_guide(net, "token", last_block(net))
        guide.model.train()
        prefix = guide.model._traits.prefix
        assert prefix is not None
        assert prefix.is_still(net) is shared
        if not shared:
            assert prefix.is_still(net.eval())
            continue
        loss, found = ELBO(guide.model, guide, num_particles=3), []
        for given in (prefix, None):
            guide.model._traits = replace(guide.model._traits, prefix=given)
            torch.manual_seed(4)
            found.append(loss(batch("text")))
        torch.testing.assert_close(*found, rtol=1e-6, atol=0.0)


def test_a_dropout_that_was_set_by_hand_is_seen() -> None:
    net = backbone("bert")
    prefix = frozen_prefix(net, last_block(net))
    assert prefix is not None
    net.get_submodule("embeddings.dropout").p = 0.1  # type: ignore[assignment]
    assert prefix.is_still(net)
    net.train()
    assert not prefix.is_still(net)


def test_where_there_is_no_prefix() -> None:
    bert, bart, t5 = backbone("bert"), backbone("bart"), backbone("t5")
    assert frozen_prefix(bert, []) is None
    assert frozen_prefix(bert, [*last_block(bert), "pooler.dense"]) is None, "a layer outside the blocks"
    assert frozen_prefix(bart, ["encoder.layers.1.fc1"]) is None, "its decoder would see other rows"
    assert frozen_prefix(bart, ["encoder.layers.1.fc1", "decoder.layers.1.fc1"]) is None
    assert frozen_prefix(t5, ["encoder.block.1.layer.0.SelfAttention.q"]) is None
    albert = AlbertModel(AlbertConfig(hidden_size=WIDTH, embedding_size=8, num_attention_heads=2, intermediate_size=24))
    clip = CLIPTextModel(CLIPTextConfig(hidden_size=WIDTH, num_attention_heads=2, intermediate_size=24))
    for net in (albert, clip, deberta_v3()):
        assert frozen_prefix(net, select(net, "all-linear")) is None


def test_the_prefix_is_the_blocks_before_the_first_adapted_layer() -> None:
    bert, t5 = backbone("bert"), backbone("t5")
    query = "encoder.layer.1.attention.self.query"
    for found, expected in (
        (frozen_prefix(bert, [query]), ("encoder.layer.1", "encoder.layer.2")),
        (frozen_prefix(bert, ["encoder.layer.2.output.dense", query]), ("encoder.layer.1", "encoder.layer.2")),
        (frozen_prefix(t5, ["decoder.block.1.layer.0.SelfAttention.q"]), ("decoder.block.1",)),
    ):
        assert found is not None
        assert found.blocks == expected
