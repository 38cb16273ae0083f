"""Backbones that apply a layer more than once in a pass, or to something that all examples share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from bayes_adapters import ELBO, AdapterModel, Bernoulli, adapted_layers, predict
from bayes_adapters.errors import ConfigError, FoldError
from bayes_adapters.guides import MCDropout, MeanField
from bayes_adapters.models import AdapterDropout, DiagonalCore, StochasticCore, StochasticDown, StochasticFactors
from bayes_adapters.priors import zero_normal
from tests.helpers import VOCAB, WIDTH, fill_B, token_batch

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
    with pytest.raises(FoldError, match=r"query_proj' received 1 rows where there are 16 .*chunk_size=1 in predict"):
        predict(model, guide, batch, num_samples=4, chunk_size=4)
    with pytest.raises(FoldError, match="num_particles=1 in the ELBO"):
        ELBO(model, guide, num_particles=2)(token_batch(4, 8))
    assert ELBO(model, guide)(token_batch(4, 8)).isfinite()


def test_a_table_has_no_example_whose_signs_flipout_could_take() -> None:
    for flipout in (True, False):
        model = fill_B(StochasticDown(deberta(), Bernoulli(), targets=TARGETS, num_data=5, flipout=flipout)).train()
        loss = ELBO(model, MeanField(model))
        if not flipout:
            assert loss(token_batch()).isfinite()
            return
        with pytest.raises(ConfigError, match=r"received 1 rows where there are 5 .*flipout=False"):
            loss(token_batch())


def test_flipout_keeps_its_signs_where_a_layer_is_applied_again() -> None:
    """z = A_b x of three passes through one block, with one A_b an example: least squares leave nothing over."""
    model = fill_B(StochasticDown(albert(), Bernoulli(), num_data=5, rank=2)).train()
    guide = MeanField(model, init_scale=0.5)
    layer = adapted_layers(model.backbone)[model.layers[0]]
    seen: list[tuple[Tensor, Tensor]] = []
    layer.register_forward_hook(lambda _m, x, y: seen.append((x[0].detach(), (y - layer.base_layer(x[0])).detach())))
    batch = token_batch(3, 12)
    with torch.no_grad():
        guide(batch)
    assert len(seen) == 3
    x, y = (torch.cat([pair[i] for pair in seen], 1).double() for i in (0, 1))
    for row in range(batch.size):
        fit = torch.linalg.lstsq(x[row], y[row]).solution
        torch.testing.assert_close(x[row] @ fit, y[row], rtol=1e-4, atol=1e-5)
