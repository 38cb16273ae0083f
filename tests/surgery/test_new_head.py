"""Another head on a trained adapter: what it keeps, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import torch

from bayes_adapters import Batch, Bernoulli, Frames, predict
from bayes_adapters.adapters import adapted_layers
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import CrossAttention, Delta
from bayes_adapters.heads import BayesianLinear, LinearHead, TwoLayerHead
from bayes_adapters.models import FusionCore, LoRA
from bayes_adapters.surgery.new_head import with_head
from bayes_adapters.training import fit
from tests.helpers import bert, fill_B, token_batch
from tests.refusals import refuses


def listening() -> tuple[Any, Any, Batch]:
    """Late fusion with random cores that listen, of some temperature, and a batch."""
    torch.manual_seed(0)
    model = fill_B(FusionCore(bert(), Bernoulli(), context_dim=4, rank=2))
    guide = CrossAttention(model, context_dim=4, dim=4)
    with torch.no_grad():
        for parameter in [*guide.parameters(), model.null]:
            parameter.add_(0.3 * torch.randn_like(parameter))
    guide.posterior_temperature = 0.5
    frames = Frames(torch.randn(5, 6, 4), torch.ones(5, 6, dtype=torch.bool))
    return model, guide, Batch(token_batch(5).inputs, torch.ones(5), context={"audio": frames})


def test_all_but_the_head_is_kept() -> None:
    model, guide, batch = listening()
    before = predict(model, guide, batch, num_samples=4)
    new, posterior = with_head(model, guide, TwoLayerHead(model.head.hidden))
    new.head.load_state_dict(model.head.state_dict())
    after = predict(new, posterior, batch, num_samples=4)
    assert torch.equal(after.mean, before.mean), "adapters, guide, context, temperature and draws"
    own = {p.data_ptr() for p in [*new.trainable_parameters().values(), *posterior.parameters()]}
    assert not own & {p.data_ptr() for p in [*model.trainable_parameters().values(), *guide.parameters()]}


def test_training_the_new_pair_leaves_the_old_one_alone() -> None:
    model, guide, batch = listening()
    before = predict(model, guide, batch, num_samples=4).mean
    new, posterior = with_head(model, guide, BayesianLinear(), num_data=5)
    for layer in adapted_layers(new.backbone).values():
        layer.requires_grad_(False)
    frozen = {name: p.clone() for name, p in new.named_parameters() if name.startswith("backbone.")}
    fit(new, posterior, batch, epochs=3, recipe=None, progress=False)
    assert all(torch.equal(frozen[name], new.get_parameter(name)) for name in frozen)
    assert torch.equal(predict(model, guide, batch, num_samples=4).mean, before)
    assert model.training


def test_what_was_frozen_stays_frozen_and_n_is_the_models() -> None:
    model = LoRA(bert(), Bernoulli(), rank=2, num_data=7)
    layers = adapted_layers(model.backbone)
    next(iter(layers.values())).requires_grad_(False)
    new, _ = with_head(model, Delta(model), BayesianLinear())
    assert new.num_data == 7
    kept = [{p.requires_grad for p in layer.parameters()} for layer in adapted_layers(new.backbone).values()]
    assert kept == [{p.requires_grad for p in layer.parameters()} for layer in layers.values()]


def test_mistakes() -> None:
    model, other = (LoRA(bert(), Bernoulli(), rank=2) for _ in range(2))
    with refuses(ConfigError, "guide"):
        with_head(model, Delta(other), LinearHead())
    with refuses(ConfigError, "num_data=", "head.weight"):
        with_head(model, Delta(model), BayesianLinear())
    with refuses(ConfigError, "head"):
        with_head(model, Delta(model), other.head)
