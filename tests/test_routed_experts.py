"""Mixtures of experts: an expert sees some of the tokens, however many that happens to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from bayes_adapters import ELBO, Batch, Bernoulli, predict, select
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.errors import ConfigError, FoldError, TargetError
from bayes_adapters.guides import Contextual, MCDropout, MeanField
from bayes_adapters.models import AdapterDropout, StochasticCore, StochasticDown
from tests.helpers import VOCAB, WIDTH, bert, fill_B, gpt2, swin, vit, whisper
from tests.refusals import refuses, warns

SIZES: dict[str, Any] = {"vocab_size": VOCAB, "d_model": WIDTH, "num_heads": 2, "d_ff": 24, "num_experts": 3}


def switch() -> nn.Module:
    """Each token has one expert."""
    torch.manual_seed(0)
    config = hf.SwitchTransformersConfig(
        **SIZES, d_kv=8, num_layers=2, num_sparse_encoder_layers=1, dropout_rate=0.0, router_jitter_noise=0.0
    )
    return hf.SwitchTransformersEncoderModel(config).eval()


class _Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.w1(x).relu())


class _Block(nn.Module):
    """The loop of Mixtral: a list of experts, two for each token, first choices before second ones."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(WIDTH, 3), nn.ModuleList([_Expert() for _ in range(3)])

    def forward(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(-1, WIDTH)
        weight, chosen = self.gate(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            place, token = torch.where(chosen.T.eq(number))
            out.index_add_(0, token, expert(flat[token]) * weight[token, place, None])
        return hidden + out.reshape(hidden.shape)


class Mixtral(nn.Module):
    """Two blocks of it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = type("Config", (), {"hidden_size": WIDTH})()
        self.embedding, self.layers = nn.Embedding(VOCAB, WIDTH), nn.ModuleList([_Block(), _Block()])

    def forward(self, input_ids: Tensor) -> Any:
        hidden = self.embedding(input_ids)
        for layer in self.layers:
            hidden = layer(hidden)
        return type("Output", (), {"last_hidden_state": hidden})()


NETS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "switch": (switch, ["wi", "wo"]),
    "mixtral": (Mixtral, ["w1", "w2"]),
}


def tokens(size: int = 2, length: int = 4, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    return Batch({"input_ids": torch.randint(0, VOCAB, (size, length), generator=rng)}, torch.arange(size) % 2 * 1.0)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("kind", ["A", "core", "mask"])
def test_folded_draws_never_get_each_others_tokens(name: str, kind: str) -> None:
    """Of 20 batches some give an expert a multiple of S·B tokens; those were taken for folded draws."""
    build, targets = NETS[name]
    net = build()
    if kind == "A":
        model: Any = StochasticDown(net, Bernoulli(), targets=targets, rank=3, num_data=5, flipout=False)
    elif kind == "core":
        model = StochasticCore(net, Bernoulli(), targets=targets, rank=3, granularity="global", num_data=5)
    else:
        model = AdapterDropout(net, Bernoulli(), targets=targets, rank=3, granularity="global", drop=0.5)
    fill_B(model)
    guide = MCDropout(model) if kind == "mask" else MeanField(model, init_scale=0.5)
    for seed in range(20):
        batch = tokens(seed=seed).without_targets()
        one = predict(model, guide, batch, num_samples=2, chunk_size=1, return_samples=True).samples
        both = predict(model, guide, batch, num_samples=2, return_samples=True).samples
        assert isinstance(one, Tensor)
        torch.testing.assert_close(both, one, rtol=1e-5, atol=1e-6)
        with pytest.raises(FoldError):
            predict(model, guide, batch, num_samples=2, chunk_size=2)
        with pytest.raises(FoldError):
            ELBO(model, guide, num_particles=2)(tokens(seed=seed))


@pytest.mark.parametrize("name", NETS)
def test_one_draw_of_a_global_part_is_one_function_of_any_tokens(name: str) -> None:
    build, targets = NETS[name]
    model = fill_B(StochasticDown(build(), Bernoulli(), targets=targets, rank=3, num_data=5, flipout=False))
    assert ELBO(model, MeanField(model))(tokens()).isfinite()


@pytest.mark.parametrize("name", NETS)
def test_experts_have_neither_signs_nor_local_draws(name: str) -> None:
    build, targets = NETS[name]
    for seed in range(10):
        model = fill_B(StochasticDown(build(), Bernoulli(), targets=targets, rank=3, num_data=5)).train()
        with refuses(ConfigError, "flipout=False"):
            ELBO(model, MeanField(model))(tokens(seed=seed))
        local = StochasticCore(build(), Bernoulli(), targets=targets, rank=3)
        with refuses(FoldError, "2 examples", "granularity='global'"):
            Contextual(local)(tokens(seed=seed))
        with refuses(FoldError, "1 examples", "granularity='global'"):
            Contextual(local)(tokens(size=1, seed=seed))


def test_the_layout_of_a_matrix_is_known_and_not_guessed() -> None:
    """Two draws of three examples of five tokens."""
    rows = Rows(tokens(3, 5), (2, 1))
    block = "decoder.layers.0.fc1"
    for count in range(1, 62):
        assert rows.are_examples(block, torch.zeros(count, 4)) is (count == 30), count
    assert not rows.are_examples("layers.0.mlp.experts.1.w1", torch.zeros(30, 4)), "its rows are in another order"
    assert rows.are_examples("layers.0.mlp.shared_expert.w1", torch.zeros(30, 4))
    assert rows.are_examples("pooler.dense", torch.zeros(6, 4)), "one vector an example, after the blocks"
    assert rows.by_example(block, torch.arange(30.0)[:, None])[4, 2] == 22.0
    assert rows.by_example("pooler.dense", torch.zeros(6, 4)).shape == (6, 4)


@pytest.mark.parametrize(
    ("inputs", "layer", "length"),
    [
        ({"input_ids": (2, 5)}, "layers.0.fc1", 5),
        ({"input_ids": (2, 5), "decoder_input_ids": (2, 3)}, "decoder.block.0.wi", 3),
        ({"input_ids": (2, 5), "decoder_input_ids": (2, 3)}, "encoder.block.0.wi", 5),
        ({"inputs_embeds": (2, 7, 4)}, "layers.0.fc1", 7),
        ({"input_values": (2, 900), "token_mask": (2, 6)}, "layers.0.fc1", 6),
        ({"pixel_values": (2, 3, 8, 8)}, "layers.0.fc1", None),
        ({"text.input_ids": (2, 5), "audio.token_mask": (2, 8)}, "audio.layers.0.fc1", 8),
        ({"text.input_ids": (2, 5), "audio.token_mask": (2, 8)}, "text.layers.0.fc1", 5),
    ],
)
def test_the_number_of_tokens_is_that_of_the_layers_stream(
    inputs: dict[str, tuple[int, ...]], layer: str, length: int | None
) -> None:
    assert Rows(Batch({key: torch.ones(shape) for key, shape in inputs.items()})).length(layer) == length


# ---- what a mixture has that is no linear layer ----

MOE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
    "num_local_experts": 3,
}


def test_all_linear_names_the_experts_that_it_leaves_out() -> None:
    torch.manual_seed(0)
    net = hf.MixtralModel(hf.MixtralConfig(**MOE)).eval()
    with warns(UserWarning, "layers.*.mlp.experts.down_proj", "gate_up_proj", "75%") as seen:
        paths = select(net, "all-linear")
    assert len(seen) == 1
    assert {path.rsplit(".", 1)[-1] for path in paths} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert select(net, ["q_proj"]) == [path for path in paths if path.endswith("q_proj")]
    model = fill_B(StochasticDown(net, Bernoulli(), targets=["q_proj"], num_data=5, flipout=False))
    guide, batch = MeanField(model, init_scale=0.5), tokens().without_targets()
    one = predict(model, guide, batch, num_samples=3, chunk_size=1, return_samples=True).samples
    torch.testing.assert_close(predict(model, guide, batch, num_samples=3, return_samples=True).samples, one)


@pytest.mark.parametrize("net", [bert, gpt2, vit, whisper, swin, switch])
def test_nothing_is_said_where_nothing_is_left_out(net: Callable[[], nn.Module]) -> None:
    assert select(net(), "all-linear")


def test_a_router_that_is_linear_by_its_class_only_is_no_target() -> None:
    torch.manual_seed(0)
    sizes = MOE | {"intermediate_size_mlp": 24, "head_dim": 8, "interleave_moe_layer_step": 1, "pad_token_id": 0}
    net = hf.Llama4TextModel(hf.Llama4TextConfig(**sizes)).eval()
    with warns(UserWarning, "layers.*.feed_forward.experts"):
        paths = select(net, "all-linear")
    assert not [path for path in paths if path.endswith("router")]
    assert [path for path in paths if path.endswith("shared_expert.up_proj")]
    with refuses(TargetError, "'router'", "Llama4Router"):
        select(net, ["router"])


class _Chooser(nn.Linear):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        return super().forward(x).topk(1)


def test_a_layer_that_returns_several_tensors_is_refused_by_name() -> None:
    layer = AdaptedLinear(_Chooser(4, 3), 2, 4.0, path="mlp.gate")
    with refuses(ConfigError, "'mlp.gate'", "_Chooser", "topk", "exclude=['gate']"):
        layer(torch.ones(2, 4))
