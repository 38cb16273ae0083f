"""Backbones that apply a layer more than once in a pass, to something that all examples share, or to tokens first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from bayes_adapters import ELBO, AdapterModel, Bernoulli, adapted_layers, predict
from bayes_adapters.errors import ConfigError, DataError, FoldError
from bayes_adapters.guides import MCDropout, MeanField
from bayes_adapters.models import AdapterDropout, DiagonalCore, StochasticCore, StochasticDown, StochasticFactors
from bayes_adapters.priors import zero_normal
from tests.helpers import VOCAB, WIDTH, bert, fill_B, opt, token_batch
from tests.refusals import refuses

SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_attention_heads": 2, "intermediate_size": 24}


def deberta() -> nn.Module:
    """Its query and key layers also run on a table of 8 relative positions, of shape (1, 8, d)."""
    torch.manual_seed(0)
    relative = {"relative_attention": True, "position_buckets": 4, "pos_att_type": ["c2p", "p2c"]}
    config = hf.DebertaV2Config(**SIZES, **relative, num_hidden_layers=2, share_att_key=True)
    return hf.DebertaV2Model(config).eval()


def albert() -> nn.Module:
    """One block, applied three times."""
    torch.manual_seed(0)
    return hf.AlbertModel(hf.AlbertConfig(**SIZES, embedding_size=8, num_hidden_layers=3)).eval()


def longformer() -> nn.Module:
    """Its attention's layers see (T, B, d), all others (B, T, d)."""
    torch.manual_seed(0)
    config = hf.LongformerConfig(**SIZES, num_hidden_layers=2, attention_window=[4, 4], max_position_embeddings=40)
    return hf.LongformerModel(config).eval()


def xlnet() -> nn.Module:
    """All of its linear layers see (T, B, d), its output is (B, T, d)."""
    torch.manual_seed(0)
    return hf.XLNetModel(hf.XLNetConfig(vocab_size=VOCAB, d_model=WIDTH, n_layer=2, n_head=2, d_inner=24)).eval()


TARGETS = ["query_proj", "value_proj"]
MODELS: dict[str, Callable[[], AdapterModel]] = {
    "core": lambda: StochasticCore(deberta(), Bernoulli(), targets=TARGETS, granularity="global", num_data=5),
    "diagonal": lambda: DiagonalCore(deberta(), Bernoulli(), targets=TARGETS, num_data=5),
    "A": lambda: StochasticDown(deberta(), Bernoulli(), targets=TARGETS, num_data=5),
    "A and B": lambda: StochasticFactors(deberta(), Bernoulli(), targets=TARGETS, num_data=5, prior=zero_normal()),
    "mask": lambda: AdapterDropout(deberta(), Bernoulli(), targets=TARGETS, granularity="global", drop=0.5),
}


def pair(name: str) -> tuple[AdapterModel, Any]:
    model = MODELS[name]()
    guide = MCDropout(model) if name == "mask" else MeanField(model, init_scale=0.4)
    if name == "A and B":
        with torch.no_grad():
            for loc in guide.loc.values():
                loc.normal_(std=0.5)
        return model, guide
    return fill_B(model), guide


@pytest.mark.parametrize("name", MODELS)
def test_a_draw_is_one_function_of_a_table_too(name: str) -> None:
    """Folded, eight positions would be dealt out to four draws."""
    model, guide = pair(name)
    batch = token_batch(4, 8).without_targets()
    one_by_one = predict(model, guide, batch, num_samples=4, chunk_size=1, return_samples=True).samples
    together = predict(model, guide, [batch[:1], batch[1:]], num_samples=4, return_samples=True).samples
    assert isinstance(one_by_one, Tensor)
    assert (one_by_one.std(0) > 1e-4).all()
    torch.testing.assert_close(together, one_by_one, rtol=1e-5, atol=1e-6)
    with refuses(FoldError, 1, 16, "chunk_size=1", "num_particles=1"):
        predict(model, guide, batch, num_samples=4, chunk_size=4)
    with refuses(FoldError, "chunk_size=1", "num_particles=1"):
        ELBO(model, guide, num_particles=2)(token_batch(4, 8))
    assert ELBO(model, guide)(token_batch(4, 8)).isfinite()


def test_a_table_has_no_example_whose_signs_flipout_could_take() -> None:
    for flipout in (True, False):
        model = fill_B(StochasticDown(deberta(), Bernoulli(), targets=TARGETS, num_data=5, flipout=flipout)).train()
        loss = ELBO(model, MeanField(model))
        if not flipout:
            assert loss(token_batch()).isfinite()
            return
        with refuses(ConfigError, 1, 5, "flipout=False"):
            loss(token_batch())


@pytest.mark.parametrize("length", [4, 8])
@pytest.mark.parametrize(
    ("net", "targets", "options"),
    [
        (longformer, ["query", "output.dense"], {"granularity": "global", "num_data": 5}),
        (longformer, ["query", "output.dense"], {"granularity": "token"}),
        (xlnet, ["layer_1", "layer_2"], {"granularity": "global", "num_data": 5}),
        (xlnet, ["layer_1", "layer_2"], {"granularity": "token"}),
    ],
)
def test_a_draw_is_one_function_where_tokens_come_first(net: Any, targets: Any, length: int, options: Any) -> None:
    """Eight tokens are as many as four draws of two examples."""
    model = fill_B(StochasticCore(net(), Bernoulli(), targets=targets, **options))
    guide = MeanField(model, init_scale=0.4)
    batch = token_batch(2, length).without_targets()
    folded = predict(model, guide, batch, num_samples=4, return_samples=True).samples
    one = predict(model, guide, batch, num_samples=4, chunk_size=1, return_samples=True).samples
    alone = predict(model, guide, [batch[:1], batch[1:]], num_samples=4, chunk_size=3, return_samples=True).samples
    assert isinstance(one, Tensor)
    assert (one.std(0) > 1e-4).all()
    torch.testing.assert_close(folded, one, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(alone, one, rtol=1e-5, atol=1e-6)


def test_tokens_that_the_backbone_pads_are_padded_by_the_tokenizer() -> None:
    """Longformer makes 10 tokens 12, a multiple of its window of 4; a draw per token needs to know which are real."""
    model = StochasticCore(longformer(), Bernoulli(), targets=["query"], granularity="token")
    with refuses(DataError, 10, 12, "pad_to_multiple_of="):
        model(token_batch(2, 10))
    assert model(token_batch(2, 12)).isfinite().all()


class _TokensFirst(nn.Module):
    """A backbone that nobody has declared: its layer sees (T, B, d)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = type("Config", (), {"hidden_size": WIDTH})()
        self.embedding, self.inner = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        hidden = self.inner(self.embedding(input_ids).transpose(0, 1)).tanh().transpose(0, 1)
        return type("Output", (), {"last_hidden_state": hidden})()


def test_a_draw_is_one_function_where_nobody_has_declared_that_tokens_come_first() -> None:
    """Sixteen tokens would be dealt out to four draws."""
    model = StochasticCore(_TokensFirst(), Bernoulli(), targets=["inner"], granularity="global", num_data=5)
    guide = MeanField(fill_B(model), init_scale=0.4)
    batch = token_batch(2, 16).without_targets()
    folded = predict(model, guide, batch, num_samples=4, return_samples=True).samples
    one = predict(model, guide, batch, num_samples=4, chunk_size=1, return_samples=True).samples
    assert isinstance(one, Tensor)
    assert (one.std(0) > 1e-4).all()
    torch.testing.assert_close(folded, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("net", [bert, opt])
@pytest.mark.parametrize("length", [5, 8])
def test_examples_or_their_tokens_in_rows_share_a_pass(net: Callable[[], nn.Module], length: int) -> None:
    model = fill_B(StochasticCore(net(), Bernoulli(), targets="all-linear", granularity="global", num_data=5))
    guide, batch = MeanField(model, init_scale=0.4), token_batch(2, length).without_targets()
    one = predict(model, guide, batch, num_samples=4, chunk_size=1).mean
    calls: list[int] = []
    model.backbone.register_forward_pre_hook(
        lambda _module, _args, inputs: calls.append(len(inputs["input_ids"])), with_kwargs=True
    )
    torch.testing.assert_close(predict(model, guide, batch, num_samples=4).mean, one)
    assert len(calls) == 1, "all draws in one pass; where the prefix is known it has one row for each example"


def test_as_many_tokens_as_examples_are_refused_where_they_cannot_be_told_apart() -> None:
    model = StochasticCore(xlnet(), Bernoulli(), targets=["layer_1"])
    with refuses(FoldError, "4 × 4", "chunk_size"):
        ELBO(model, MeanField(model))(token_batch(4, 4))
    assert ELBO(model, MeanField(model))(token_batch(1, 1)).isfinite()
    model = StochasticCore(xlnet(), Bernoulli(), targets=["layer_1"], granularity="global", num_data=5)
    assert ELBO(model, MeanField(model))(token_batch(4, 4)).isfinite(), "one draw for all, whichever come first"
    model = StochasticCore(opt(), Bernoulli(), targets=["q_proj"])
    assert ELBO(model, MeanField(model))(token_batch(4, 4)).isfinite()


@pytest.mark.parametrize(
    ("net", "target", "calls"), [(albert, "query", 3), (xlnet, "layer.0.ff.layer_1", 1), (opt, "layers.0.fc1", 1)]
)
def test_flipout_gives_an_example_one_function(net: Any, target: str, calls: int) -> None:
    """``B A_b x`` of all tokens and passes, with one A_b an example: least squares leave nothing over."""
    model = fill_B(StochasticDown(net(), Bernoulli(), num_data=5, rank=2, targets=[target])).train()
    guide = MeanField(model, init_scale=0.5)
    layer = adapted_layers(model.backbone)[model.layers[0]]
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda _m, x, y: seen.append((x[0].detach(), (y - layer.base_layer(x[0])).detach())))
    size, length = 3, 24
    with torch.no_grad():
        guide(token_batch(size, length))
    assert len(seen) == calls

    def by_example(value: Tensor) -> Tensor:
        return value.transpose(0, 1) if net is xlnet else value.reshape(size, length, -1)

    x, y = (torch.cat([by_example(pair[i]) for pair in seen], 1).double() for i in (0, 1))
    found = [torch.linalg.lstsq(x[row], y[row]).solution for row in range(size)]
    for row, fit in enumerate(found):
        torch.testing.assert_close(x[row] @ fit, y[row], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(fit, found[row - 1], atol=1e-2)
