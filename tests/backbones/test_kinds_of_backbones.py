"""What a backbone is: its width, its head, its device, and whether its tokens look ahead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BloomConfig,
    BloomModel,
    Gemma3Config,
    Gemma3Model,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaModel,
    T5EncoderModel,
    XLNetConfig,
    XLNetModel,
)

from bayes_adapters import ELBO, Batch, Bernoulli, Tagging, predict
from bayes_adapters.backbones.causality import is_causal
from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Contextual, Delta, MCDropout, MeanField
from bayes_adapters.models import AdapterDropout, CoLA, ConcatLoRA, LoRA, Wander
from bayes_adapters.surgery.export import to_lora
from tests.helpers import VOCAB, WIDTH, bert, core_model, gpt2, llama, opt, token_batch, vit, whisper
from tests.refusals import refuses
from tests.test_streams import bart, t5


def gemma3() -> nn.Module:
    torch.manual_seed(0)
    text = {"vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "head_dim": 8}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "max_position_embeddings": 32}
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision |= {"image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=text, vision_config=vision, image_token_id=VOCAB - 1, mm_tokens_per_image=4)
    return Gemma3Model(config).eval()


def test_the_width_may_be_in_the_config_of_the_text() -> None:
    backbone = gemma3()
    assert not hasattr(backbone.config, "hidden_size")
    assert hidden_width(backbone) == WIDTH
    targets = r"language_model\..*\.(q_proj|v_proj)"
    model = LoRA(backbone, Bernoulli(), targets=targets, rank=2)
    found = predict(model, Delta(model), Batch({"input_ids": torch.arange(10).reshape(2, 5) + 3}))
    assert found.probs.shape == (2,)


HEADED: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: GPT2LMHeadModel(gpt2().config),
    "llama": lambda: LlamaForCausalLM(llama().config),
    "bert": lambda: BertForSequenceClassification(bert().config),
}


@pytest.mark.parametrize("name", HEADED)
def test_a_task_head_is_refused_when_the_model_is_built(name: str) -> None:
    backbone = HEADED[name]()
    before = [p.requires_grad for p in backbone.parameters()]
    own = {"gpt2": "transformer", "llama": "model", "bert": "bert"}[name]
    with refuses(ConfigError, type(backbone).__name__, f"backbone.{own}"):
        LoRA(backbone, Bernoulli(), targets="all-linear", rank=2)
    with refuses(ConfigError, type(backbone).__name__, f"backbone.{own}"):
        ConcatLoRA(nn.ModuleDict({"text": backbone}), Bernoulli(), rank=2)
    assert [p.requires_grad for p in backbone.parameters()] == before
    LoRA(getattr(backbone, own), Bernoulli(), targets="all-linear", rank=2)


CAUSAL: dict[str, tuple[bool, Callable[[], nn.Module]]] = {
    "gpt2": (True, gpt2),
    "llama": (True, llama),
    "opt": (True, opt),
    "bloom": (True, lambda: BloomModel(BloomConfig(vocab_size=VOCAB, hidden_size=WIDTH, n_layer=1, n_head=2))),
    "mamba": (True, lambda: MambaModel(MambaConfig(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=1))),
    "t5": (True, t5),
    "bart": (True, bart),
    "bert": (False, bert),
    "vit": (False, vit),
    "whisper's encoder": (False, whisper),
    "t5's encoder": (False, lambda: T5EncoderModel(t5().config)),
    "xlnet": (False, lambda: XLNetModel(XLNetConfig(vocab_size=VOCAB, d_model=WIDTH, n_layer=1, n_head=2, d_inner=8))),
}


@pytest.mark.parametrize("name", CAUSAL)
def test_who_looks_back_only(name: str) -> None:
    causal, make = CAUSAL[name]
    assert is_causal(make()) is causal


def test_a_draw_for_a_whole_sequence_may_not_tell_a_causal_token_what_follows() -> None:
    targets: dict[str, Any] = {"likelihood": Tagging(3), "rank": 2}
    ahead = core_model("sequence", backbone=llama(), targets=["q_proj", "v_proj"], **targets)
    with refuses(
        ConfigError, "Contextual", "'core.layers.0.self_attn.q_proj'", "LlamaModel", "granularity='token'", "'global'"
    ):
        Contextual(ahead)
    MeanField(ahead)  # does not depend on the input
    Contextual(core_model("sequence", **targets))  # BERT's tokens see each other anyway
    Contextual(core_model("sequence", backbone=gpt2(), targets=["c_attn"], rank=2))  # one target per example
    model = AdapterDropout(gpt2(), Tagging(3), targets=["c_attn"], granularity="sequence", rank=2)
    MCDropout(model)


def test_earlier_tokens_do_not_see_later_ones() -> None:
    model = core_model(backbone=llama(), targets=["q_proj", "v_proj"], likelihood=Tagging(3), rank=2)
    guide, ids = Contextual(model), torch.arange(3, 9)[None]
    later = ids.clone()
    later[0, 4:] = 20
    found = [predict(model, guide, Batch({"input_ids": t}), num_samples=3).probs[:, :4] for t in (ids, later)]
    assert torch.equal(*found)


SIZES: dict[str, Any] = {"num_data": 9, "lengths": {"a": 2, "b": 2}, "fusion_rank": 2, "terms": 2}
BUILDERS: dict[str, Callable[[nn.Module], object]] = {
    "lora": lambda net: LoRA(net, Bernoulli(), rank=2),
    "concat_lora": lambda net: ConcatLoRA(nn.ModuleDict({"a": net, "b": bert()}), Bernoulli(), rank=2),
    "cola": lambda net: CoLA(nn.ModuleDict({"a": net, "b": bert()}), Bernoulli(), rank=2),
    "cola, shared": lambda net: CoLA(nn.ModuleDict({"a": net, "b": bert()}), Bernoulli(), rank=2, share="all"),
    "wander": lambda net: Wander(nn.ModuleDict({"a": net, "b": bert()}), Bernoulli(), **SIZES),
    "wander, every layer": lambda net: Wander(
        nn.ModuleDict({"a": net, "b": bert()}), Bernoulli(), every_layer=True, **SIZES
    ),
    "to_lora": lambda net: exported_to(net),
}


def exported_to(net: nn.Module) -> object:
    other = bert()
    other.load_state_dict(net.state_dict())
    trained = LoRA(other, Bernoulli(), rank=2)
    return to_lora(trained, Delta(trained), net)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_backbone_that_is_split_is_not_gathered(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = bert()
    own = {id(module) for module in backbone.modules()}
    moved: list[str] = []
    apply = nn.Module._apply  # what to(), cuda() and half() end in

    def noted(module: nn.Module, *args: Any, **options: Any) -> nn.Module:
        if id(module) in own:
            moved.append(type(module).__name__)
        return apply(module, *args, **options)

    monkeypatch.setattr(nn.Module, "_apply", noted)
    BUILDERS[kind](backbone)
    assert not moved


def test_an_offloaded_backbone_is_refused() -> None:
    backbone = bert()
    backbone.encoder.layer[1].to("meta")
    with refuses(ConfigError, 16, 39, "'encoder.layer.1.attention.self.query.weight'", "device_map"):
        LoRA(backbone, Bernoulli(), rank=2)
    with torch.device("meta"):
        whole = bert()
    assert LoRA(whole, Bernoulli(), rank=2).head.weight.is_meta
    whole.hf_device_map = {"": "disk"}
    with refuses(ConfigError, 47, "'embeddings.word_embeddings.weight'", "device_map"):
        LoRA(whole, Bernoulli(), rank=2)


def test_half_precision_variational_parameters_are_refused_by_every_loss() -> None:
    model = core_model()
    guide = MeanField(model).bfloat16()
    with refuses(ConfigError, "MeanField", "torch.bfloat16", "float32", "guide.float()"):
        ELBO(model, guide)(token_batch())
    with refuses(ConfigError, "MeanField", "torch.bfloat16", "float32", "guide.float()"):
        guide(token_batch())
    guide.double()
    assert ELBO(model, guide)(token_batch()).isfinite()
