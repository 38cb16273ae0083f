"""A system that starts from a trained LoRA answers, in the mean, what the LoRA answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import Categorical, adapted_layers, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta, Flow, FullGaussian, LowRank, MatrixNormal, MeanField, RankWise
from bayes_adapters.heads import TwoLayerHead
from bayes_adapters.models import LoRA, StochasticFactors
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.switching import activate
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.systems import SYSTEMS, start, start_at, start_from_peft
from bayes_adapters.training import fit
from tests.files.peft.parts import adapters, hidden, settings, trained
from tests.helpers import CONTEXT, bert, core_model, fill_B, token_batch
from tests.refusals import refuses

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

NAMES = ["lora", "mc-dropout", "bayeslora-2025", "bayeslora-2026", "blob", "scalabl", "c-lora"]
LISTENING = ["coco-lora", "caliber-g", "caliber-x"]


def lora(**options: Any) -> LoRA:
    torch.manual_seed(5)
    return fill_B(LoRA(bert(), Categorical(3), **{"rank": 3, "alpha": 5.0} | options))  # type: ignore[return-value]


def mean(model: Any, guide: Any) -> Tensor:
    return predict(model, guide, token_batch().without_targets(), mean_only=True).probs


def test_the_names_are_those_of_the_table() -> None:
    assert set(NAMES + LISTENING) <= set(SYSTEMS)


@pytest.mark.parametrize("name", NAMES + LISTENING)
def test_the_mean_is_the_loras(name: str) -> None:
    old = lora()
    before = mean(old, Delta(old))
    options = {"context_dim": CONTEXT} if name in LISTENING else {}
    model, guide = start(name, old, num_data=50, **options)
    assert type(model) is SYSTEMS[name].model
    assert type(guide) is SYSTEMS[name].guide
    torch.testing.assert_close(mean(model, guide), before, rtol=0, atol=1e-6)
    if name != "lora":
        drawn = predict(model, guide, token_batch().without_targets(), num_samples=3, return_samples=True).samples
        assert (drawn - drawn[:1]).abs().max() > 0, "and it is random"
    batch = token_batch(targets=torch.tensor([0, 1, 2, 1, 0]))
    fit(model, guide, batch, epochs=2, progress=False)
    assert not torch.allclose(mean(model, guide), before), "it trains"
    assert torch.equal(mean(activate(old), Delta(old)), before), "the LoRA is as it was"


@pytest.mark.parametrize("name", ["blob", "c-lora"])
def test_from_pefts_adapter_to_a_bayesian_one(name: str, tmp_path: Path) -> None:
    theirs = trained(bert(), settings("bert", target_modules=["query", "value"]))
    adapters(tmp_path, target_modules=["query", "value"])
    model = from_peft(tmp_path, bert(), Categorical(3), head=False)
    before = mean(model, Delta(model))
    new, guide = start(name, model, num_data=50)
    torch.testing.assert_close(mean(new, guide), before, rtol=0, atol=1e-6)
    if name == "blob":  # its mean is a LoRA again, and so are its hidden states
        again = to_lora(new, guide, bert())
        torch.testing.assert_close(hidden(again.backbone), hidden(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["blob", "scalabl", "c-lora"])
def test_one_call_from_a_folder_of_peft(name: str, tmp_path: Path) -> None:
    patterns = {"rank_pattern": {"query": 2}, "alpha_pattern": {"value": 4}, "use_rslora": True}
    adapters(tmp_path, target_modules=["query", "value"], **patterns)
    old = from_peft(tmp_path, bert(), Categorical(3), head=False)
    torch.manual_seed(9)
    model, guide = start_from_peft(name, tmp_path, bert(), Categorical(3), head=False, num_data=50)
    model.head.load_state_dict(old.head.state_dict())
    assert type(model) is SYSTEMS[name].model
    torch.testing.assert_close(mean(model, guide), mean(old, Delta(old)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["laplace", "tfb"])
def test_methods_after_training_begin_with_a_folder_of_peft(method: str, tmp_path: Path) -> None:
    to_peft(tmp_path, lora())
    model = from_peft(tmp_path, bert(), Categorical(3))
    before = mean(model, Delta(model))
    batch = token_batch(targets=torch.tensor([0, 1, 2, 1, 0]))
    if method == "laplace":
        new, guide, _ = laplace(model, Delta(model), batch, prior_precision=10.0, linearised=False)
    else:
        new, guide, _ = bayesianise(model, Delta(model), batch)
    torch.testing.assert_close(mean(new, guide), before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("guide", [LowRank, FullGaussian, MatrixNormal, MeanField, RankWise])
def test_a_pair_of_any_family_starts_at_a_lora(guide: Any, tmp_path: Path) -> None:
    adapters(tmp_path, target_modules=["query", "value"])
    old = from_peft(tmp_path, bert(), Categorical(3), head=False)
    options = {"targets": ["query", "value"], "rank": 3, "alpha": old.alpha, "num_data": 20}
    model = StochasticFactors(bert(), Categorical(3), **options)
    made = guide(model)
    start_at(model, made, old)
    torch.testing.assert_close(mean(model, made), mean(old, Delta(old)), rtol=0, atol=1e-5)


def test_a_pair_that_does_not_fit_stays_as_it_was() -> None:
    old = lora()
    model = StochasticFactors(bert(), Categorical(3), rank=3, alpha=5.0, num_data=20)
    guide = Flow(model)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    with refuses(ConfigError, "Flow"):
        start_at(model, guide, old)
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    other = StochasticFactors(bert(), Categorical(3), rank=2, alpha=5.0, num_data=20)
    with refuses(ConfigError, "'encoder.layer.0.attention.self.query'", 2, 3):
        start_at(other, MeanField(other), old)
    tall = StochasticFactors(bert(), Categorical(4), rank=3, alpha=5.0, num_data=20)
    with refuses(ConfigError, "LinearHead", "lora.head.fresh()"):
        start_at(tall, MeanField(tall), old)


def test_a_folder_that_cannot_start_leaves_a_bare_backbone(tmp_path: Path) -> None:
    adapters(tmp_path, target_modules=["query", "value"])
    backbone = bert()
    with refuses(ConfigError, "num_data="):
        start_from_peft("blob", tmp_path, backbone, Categorical(3), head=False)
    assert not adapted_layers(backbone)


def test_a_prior_around_the_identity_is_the_networks_centre() -> None:
    import pyro.distributions as dist

    old = lora()
    before = mean(old, Delta(old))
    around = lambda name, shape: dist.Normal(torch.eye(shape[-1]).expand(shape), 0.2)  # noqa: E731
    model, guide = start("c-lora", old, prior=around)
    torch.testing.assert_close(mean(model, guide), before, rtol=0, atol=1e-6)
    head = next(iter(guide.heads.values()))
    assert not head.net[-1].bias[:9].any()


def test_ranks_heads_and_dropout_come_along() -> None:
    path = "encoder.layer.1.attention.self.value"
    old = lora(ranks={path: 1}, dropout=0.25, head=TwoLayerHead(4, pooling="cls"))
    before = mean(old, Delta(old))
    model, guide = start("blob", old, num_data=50)
    assert model.ranks == old.ranks | {path: 1}
    assert model.dropout == 0.25
    assert model.head is not old.head
    torch.testing.assert_close(mean(model, guide), before, rtol=0, atol=1e-6)


def test_what_cannot_start_leaves_the_lora_as_it_was() -> None:
    old = lora()
    before = mean(old, Delta(old))
    with refuses(ConfigError, "rank"):
        start("blob", old, num_data=50, rank=4)
    with refuses(ConfigError, "num_data="):
        start("blob", old)
    with refuses(ConfigError, "polar-vbll", "OrthonormalLinear", "build('polar-vbll'"):
        start("polar-vbll", old, num_data=50)
    with refuses(ConfigError, "'blobb'", "blob"):
        start("blobb", old)
    with refuses(ConfigError, "StochasticCore", "to_lora"):
        start("blob", core_model())
    assert torch.equal(mean(old, Delta(old)), before)
    start("c-lora", old)
    with refuses(ConfigError, "activate(model)"):
        start("c-lora", old)
