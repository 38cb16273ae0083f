"""Models and guides under stock Pyro: SVI, Predictive, handlers; frozen tensors; the parameter store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from bayes_adapters import ELBO, AdapterGuide, AdapterModel, Bernoulli, adapted_layers
from bayes_adapters.errors import DataError
from bayes_adapters.guides import Contextual, Delta, MeanField
from bayes_adapters.models import FusionLoRA, LoRA
from tests.helpers import CONTEXT, GUIDES, bert, core_model, token_batch
from tests.refusals import refuses

STORE = pyro.get_param_store


def snapshot(*modules: nn.Module) -> dict[str, Tensor]:
    return {f"{i}.{n}": p.detach().clone() for i, m in enumerate(modules) for n, p in m.named_parameters()}


def changed(before: dict[str, Tensor], *modules: nn.Module) -> set[str]:
    after = snapshot(*modules)
    return {name for name in before if not torch.equal(before[name], after[name])}


def trainable(*modules: nn.Module) -> set[str]:
    return {f"{i}.{n}" for i, m in enumerate(modules) for n, p in m.named_parameters() if p.requires_grad}


def zero_B(model: AdapterModel) -> AdapterModel:
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.zero_()
    return model


def train_torch(model: AdapterModel, guide: AdapterGuide, steps: int) -> None:
    elbo = ELBO(model, guide)
    optimiser = torch.optim.Adam([p for p in elbo.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        elbo(token_batch()).backward()
        optimiser.step()
    assert len(STORE().keys()) == 0, "the parameter store must stay empty"


def train_svi(kind: type) -> Callable[[AdapterModel, AdapterGuide, int], None]:
    def train(model: AdapterModel, guide: AdapterGuide, steps: int) -> None:
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), kind())
        for _ in range(steps):
            svi.step(token_batch())

    return train


WAYS = {"torch": train_torch, "svi_mean_field": train_svi(TraceMeanField_ELBO), "svi_trace": train_svi(Trace_ELBO)}


@pytest.mark.parametrize("way", list(WAYS))
@pytest.mark.parametrize("name", ["cross_attention", "mean_field", "delta"])
def test_trains_every_trainable_tensor_and_nothing_else(way: str, name: str) -> None:
    """B = 0 hides A and the cores from the likelihood at the first step, so two steps are needed."""
    model = zero_B(core_model())
    guide = GUIDES[name](model)
    expected = trainable(model, guide)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert {n.rsplit(".", 1)[-1] for n, p in model.backbone.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }
    assert len(frozen) > 20
    before = snapshot(model, guide)
    WAYS[way](model, guide, 2)
    assert changed(before, model, guide) == expected
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert not any("base_layer" in key or "embeddings" in key for key in STORE().keys())  # noqa: SIM118


def test_svi_registers_exactly_the_trainable_tensors() -> None:
    model = core_model()
    guide = Contextual(model)
    train_svi(Trace_ELBO)(model, guide, 1)
    names = {f"model$$${n}" for n in model.trainable_parameters()} | {
        f"guide$$${n}" for n, _ in guide.named_parameters()
    }
    assert set(STORE().keys()) == names
    assert STORE()[next(iter(names & {f"guide$$${n}" for n, _ in guide.named_parameters()}))].requires_grad


@pytest.mark.parametrize("name", ["cross_attention", "mean_field"])
def test_svi_loss_equals_elbo_loss_step_for_step(name: str) -> None:
    losses: dict[str, list[float]] = {"svi": [], "elbo": []}
    model = core_model()
    guide = GUIDES[name](model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
    torch.manual_seed(3)
    losses["svi"] = [svi.step(token_batch()) for _ in range(4)]
    torch.manual_seed(0)  # the same initial parameters
    model = core_model()
    guide = GUIDES[name](model)
    elbo = ELBO(model, guide)
    optimiser = torch.optim.Adam([p for p in elbo.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(3)
    for _ in range(4):
        optimiser.zero_grad()
        loss = elbo(token_batch())
        loss.backward()
        optimiser.step()
        losses["elbo"].append(loss.item())
    assert losses["svi"] == pytest.approx([50 * loss for loss in losses["elbo"]], rel=1e-4)  # N = 50
    assert losses["svi"][-1] != losses["svi"][0]


def test_a_second_model_in_one_process_is_refused_by_name() -> None:
    first = core_model()
    train_svi(Trace_ELBO)(first, Contextual(first), 1)
    second = core_model()
    with refuses(RuntimeError, "pyro.clear_param_store()", "pyro.settings.set(module_local_params=True)"):
        train_svi(Trace_ELBO)(second, Contextual(second), 1)
    pyro.clear_param_store()
    train_svi(Trace_ELBO)(second, Contextual(second), 1)


@pytest.fixture
def local_params() -> Iterator[None]:
    with pyro.settings.context(module_local_params=True):
        yield


@pytest.mark.parametrize("way", ["svi_mean_field", "svi_trace"])
def test_local_parameters_train_two_models_side_by_side_without_the_store(way: str, local_params: None) -> None:
    pairs = [(model, Contextual(model)) for model in (zero_B(core_model()), zero_B(core_model()))]
    before = [snapshot(*pair) for pair in pairs]
    for pair in pairs:
        WAYS[way](*pair, 2)
    assert set(STORE().keys()) == set()
    for pair, old in zip(pairs, before, strict=True):
        assert changed(old, *pair) == trainable(*pair)
        assert not any(hasattr(p, "unconstrained") for module in pair for p in module.parameters())


@pytest.mark.parametrize("local", [False, True])
def test_local_parameters_change_no_step(local: bool) -> None:
    with pyro.settings.context(module_local_params=local):
        model = core_model()
        svi = SVI(model, Contextual(model), pyro.optim.Adam({"lr": 1e-2}), TraceMeanField_ELBO())
        torch.manual_seed(3)
        losses = [svi.step(token_batch()) for _ in range(3)]
    torch.manual_seed(0)
    model = core_model()
    elbo = ELBO(model, Contextual(model))
    optimiser = torch.optim.Adam([p for p in elbo.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(3)
    for loss in losses:
        optimiser.zero_grad()
        ours = elbo(token_batch())
        ours.backward()
        optimiser.step()
        assert loss == pytest.approx(50 * ours.item(), rel=1e-4)


def test_evaluation_leaves_the_parameter_store_empty() -> None:
    model = core_model()
    guide = Contextual(model)
    guide(token_batch())
    model(token_batch())
    TraceMeanField_ELBO().loss(model, guide, token_batch())
    poutine.trace(model).get_trace(token_batch())
    assert len(STORE().keys()) == 0


def test_trace_elbo_agrees_with_the_closed_form_on_average() -> None:
    model = core_model("global", rank=1, num_data=5)
    guide, batch = MeanField(model, init_scale=0.15), token_batch()
    stock = Trace_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
    torch.manual_seed(0)
    mc = stock.loss(model, guide, batch)
    exact = ELBO(model, guide, num_particles=400)(batch).item()
    assert mc / 5 == pytest.approx(exact, abs=0.1 * abs(exact) + 0.05)


# ---- Predictive, and the prior predictive ----


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(
    ("granularity", "name"), [("token", "cross_attention"), ("sequence", "contextual"), ("global", "mean_field")]
)
def test_predictive(granularity: str, name: str, parallel: bool) -> None:
    model = core_model(granularity)
    guide, batch = GUIDES[name](model), token_batch().without_targets()
    found = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(batch)
    assert found["obs"].reshape(6, -1).shape == (6, 5)
    assert set(found["obs"].unique().tolist()) <= {0.0, 1.0}
    site = model.sites[0]
    core = found[site.name]
    assert core.shape[0] == 6
    assert core.shape[-2:] == (3, 3)
    assert (core[0] - core[1]).abs().max() > 0


def test_prior_predictive() -> None:
    model, batch = core_model("global", rank=2), token_batch().without_targets()
    found = Predictive(model, num_samples=500, parallel=True)(batch)
    assert found["core.global"].std().item() == pytest.approx(0.2, rel=0.1)
    assert found["obs"].reshape(500, -1).shape == (500, 5)


def test_model_without_guide_draws_from_the_prior() -> None:
    model, batch = core_model(), token_batch().without_targets()
    trace = poutine.trace(model).get_trace(batch)
    assert set(trace.stochastic_nodes) >= {*(s.name for s in model.sites), "obs"}
    assert trace.nodes[model.sites[0].name]["value"].shape == (5, 7, 3, 3)
    assert trace.nodes["obs"]["value"].shape == (5,)
    trace.compute_log_prob()


# ---- the other models ----


@pytest.mark.parametrize(
    "build",
    [
        lambda: LoRA(bert(), Bernoulli(), rank=2),
        lambda: FusionLoRA(bert(), Bernoulli(), rank=2, context_dim=CONTEXT, fusion_width=5),
    ],
    ids=["lora", "fusion"],
)
def test_deterministic_models_train_under_stock_pyro(build: Callable[[], Any]) -> None:
    model = build()
    guide = Delta(model)
    before = snapshot(model)
    train_svi(Trace_ELBO)(model, guide, 3)
    assert changed(before, model) == trainable(model)


def test_fusion_sees_the_context_and_falls_back_to_its_null() -> None:
    model = FusionLoRA(bert(), Bernoulli(), rank=2, context_dim=CONTEXT, fusion_width=5)
    with torch.no_grad():
        model.null.normal_()
    batch = token_batch()
    with torch.no_grad():
        heard, missing = model(batch), model(batch.without("audio"))
    assert torch.allclose(heard[2], missing[2]), "row 2 has no audio in either batch"
    assert (heard[1] - missing[1]).abs() > 1e-4
    wrong = FusionLoRA(bert(), Bernoulli(), rank=2, context_dim=CONTEXT + 1)
    with refuses(DataError, "'audio'", 6, "context_dim=7"):
        wrong(batch)


def test_a_fusion_that_was_cast_as_a_whole_runs() -> None:
    model = FusionLoRA(bert(), Bernoulli(), rank=2, context_dim=CONTEXT, fusion_width=5)
    with torch.no_grad():
        before, after = model(token_batch()), model.to(torch.bfloat16)(token_batch())
    assert after.dtype == torch.bfloat16
    torch.testing.assert_close(after.float(), before, rtol=0, atol=0.02)
