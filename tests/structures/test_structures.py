"""Structures of third parties, in one file each, and what is refused because no plain LoRA equals it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import ELBO, AdapterModel, Bernoulli, adapted_layers, load, predict, remove, save
from bayes_adapters.adapters.installation import install
from bayes_adapters.adapters.linear import AdaptedLinear, Times
from bayes_adapters.errors import ConfigError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta, MCDropout, MeanField, RankWise
from bayes_adapters.models import LoRA, StochasticDown
from bayes_adapters.sites import REAL, Part
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.merging import merge, merge_intra
from bayes_adapters.surgery.training_free import bayesianise
from bayes_adapters.training import fit
from tests.helpers import bert, fill_B, token_batch
from tests.refusals import refuses
from tests.structures.dora import MAGNITUDE, DoRA, DoRALayer
from tests.structures.vera import B, D, VeRA, VeRALayer

STRUCTURES: list[type[AdapterModel]] = [VeRA, DoRA]


def build(structure: type[AdapterModel], net: nn.Module | None = None) -> AdapterModel:
    return structure(net or bert(), Bernoulli(), rank=3, num_data=5)


def fill(model: AdapterModel) -> AdapterModel:
    """Give B entries other than zero where it is a parameter."""
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in adapted_layers(model.backbone).values():
            if layer.lora_B is not None:
                layer.lora_B.copy_(0.5 * torch.randn(layer.lora_B.shape, generator=rng))
    return model


def _vera(x: Tensor, layer: Any, d: Tensor, b: Tensor) -> Tensor:
    return layer.base_layer(x) + layer.scaling * b * ((d * (x @ layer.A.T)) @ layer.B.T)


def _dora(x: Tensor, layer: Any, m: Tensor) -> Tensor:
    whole = layer.base_layer.weight + layer.scaling * layer.lora_B @ layer.lora_A
    return m * (x @ whole.T) / whole.norm(dim=1) + layer.base_layer.bias


def test_vera_by_hand_under_conditioned_draws() -> None:
    model, seen = build(VeRA), []
    values = {site.name: torch.randn(site.shape) for site in model.sites}
    assert values.keys() == {"d.global", "b.global"}
    path = model.layers[2]
    layer = model.backbone.get_submodule(path)
    layer.register_forward_hook(lambda _m, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        pyro.poutine.condition(model, values)(token_batch())
        expected = _vera(seen[0][0], layer, values["d.global"][2], values["b.global"][2])
    torch.testing.assert_close(seen[0][1], expected)


def test_dora_by_hand_under_conditioned_draws() -> None:
    model, seen = fill(build(DoRA)), []
    path = model.layers[2]
    value = torch.rand(1, 16) + 0.5
    layer = model.backbone.get_submodule(path)
    layer.register_forward_hook(lambda _m, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        pyro.poutine.condition(model, {f"magnitude.{path}": value})(token_batch())
        torch.testing.assert_close(seen[0][1], _dora(seen[0][0], layer, value[0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Delta, lambda model: MeanField(model, init_scale=0.05)], ids=["Delta", "MeanField"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_structure_trains_predicts_and_survives_a_file(
    structure: type[AdapterModel], make: Callable[..., Any], tmp_path: Path
) -> None:
    net, batch = bert(), token_batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    model = fill(build(structure, net))
    guide = make(model)
    losses = [ELBO(model, guide).terms(batch).nll.item()]
    fit(
        model,
        guide,
        batch,
        max_steps=30,
        optimizer=lambda p: torch.optim.Adam(p, lr=0.05),
        kl_weight=0.01,
        progress=False,
    )
    losses.append(ELBO(model, guide).terms(batch).nll.item())
    assert losses[1] < 0.9 * losses[0]
    found = predict(model, guide, batch, num_samples=4, return_samples=True)
    one = predict(model, guide, batch, num_samples=4, chunk_size=1, return_samples=True)
    torch.testing.assert_close(found.samples, one.samples, rtol=1e-4, atol=1e-5)
    assert bool(found.epistemic.max() > 1e-6) is (not isinstance(guide, Delta))
    save(tmp_path / "adapter", model, guide)
    again = predict(*load(tmp_path / "adapter", bert()), batch, num_samples=4, return_samples=True)
    assert torch.equal(again.samples, found.samples)  # type: ignore[arg-type]
    state = remove(net).state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items()), "frozen stays frozen"


@pytest.mark.parametrize("structure", STRUCTURES)
def test_at_its_start_a_structure_without_anything_random_is_the_frozen_net(structure: type[AdapterModel]) -> None:
    net, inputs = bert(), token_batch().inputs
    with torch.no_grad():
        before = net(**inputs).last_hidden_state
        install(
            net, [f"encoder.layer.{i}.attention.self.query" for i in (0, 1)], rank=3, alpha=6.0, layer=structure.layer
        )
        torch.testing.assert_close(net(**inputs).last_hidden_state, before)


def test_what_a_part_says_of_itself() -> None:
    assert {D, B, MAGNITUDE} <= {part for part in (D, B, MAGNITUDE) if part in REAL}
    assert (D.rank_axis, B.rank_axis) == (0, None)
    with refuses(ConfigError, "'rank'"):
        Part("odd", ("rank",)).event(1, 2, 3)
    for guide in (RankWise, MCDropout):
        with refuses(ConfigError, guide.__name__, "'d.global'", "d"):
            guide(build(VeRA))


# ---- what no plain LoRA equals ----


class _DeterministicVeRA(AdapterModel):
    layer = VeRALayer


class _DeterministicDoRA(AdapterModel):
    layer = DoRALayer


def test_vera_is_a_lora_and_says_which(tmp_path: Path) -> None:
    model, batch = build(VeRA), token_batch()
    guide = MeanField(model)
    with torch.no_grad():
        for loc in guide.loc.values():
            loc.normal_()
    mean = predict(model, guide, batch, mean_only=True).mean
    lora = to_lora(model, guide, bert())
    torch.testing.assert_close(predict(lora, Delta(lora), batch).mean, mean)
    plain = _DeterministicVeRA(bert(), Bernoulli(), rank=3)
    with torch.no_grad():
        for layer in adapted_layers(plain.backbone).values():
            layer.get_parameter("lora_b").normal_()
        expected = plain.backbone(**batch.inputs).last_hidden_state
        torch.testing.assert_close(merge(plain.backbone)(**batch.inputs).last_hidden_state, expected)
        to_peft(tmp_path / "peft", plain)
        found = from_peft(tmp_path / "peft", bert(), Bernoulli()).backbone(**batch.inputs).last_hidden_state
    torch.testing.assert_close(found, expected)


class _Doubled(AdaptedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class _Reordered(AdaptedLinear):
    def update(self, x: Tensor, times: Times) -> Tensor:
        return times(Part.B, times(Part.A, x).tanh())


class _Further(VeRALayer):
    """Changes a formula of which another class says what LoRA it is."""

    def update(self, x: Tensor, times: Times) -> Tensor:
        return super().update(x, times).tanh()


class _Shown(AdaptedLinear):
    def extra_repr(self) -> str:
        return "mine"


def _with(layer: type[AdaptedLinear]) -> LoRA:
    model = fill_B(LoRA(bert(), Bernoulli(), rank=3))
    for own in adapted_layers(model.backbone).values():
        own.__class__ = layer
    return model  # type: ignore[return-value]


def _patched() -> LoRA:
    model = _with(AdaptedLinear)
    for layer in adapted_layers(model.backbone).values():
        layer.forward = lambda x, layer=layer: -AdaptedLinear.forward(layer, x)  # type: ignore[method-assign, misc]
    return model


@pytest.mark.parametrize(
    "make",
    [
        lambda: _with(_Doubled),
        lambda: _with(_Reordered),
        _patched,
        lambda: _DeterministicDoRA(bert(), Bernoulli(), rank=3),
        lambda: type("Model", (AdapterModel,), {"layer": _Further})(bert(), Bernoulli(), rank=3),
    ],
    ids=["forward", "update", "patched", "DoRA", "beyond as_lora"],
)
def test_another_formula_is_never_written_as_a_lora(make: Callable[[], Any], tmp_path: Path) -> None:
    model = make()
    guide, batch = Delta(model), token_batch()
    uses: list[Callable[[], Any]] = [
        lambda: to_lora(model, guide, bert()),
        lambda: merge(model.backbone),
        lambda: merge_intra(model),
        lambda: to_peft(tmp_path / "peft", model),
    ]
    if type(model) is LoRA:
        uses.append(lambda: bayesianise(model, guide, batch))
    for use in uses:
        with refuses(ConfigError, "'encoder.layer.0.attention.self.query'"):
            use()
    assert not (tmp_path / "peft").exists()


def test_random_parts_of_another_structure_are_refused_too() -> None:
    model = fill(build(DoRA))
    with refuses(ConfigError, "'encoder.layer.0.attention.self.query'", "DoRALayer"):
        to_lora(model, MeanField(model), bert())


def test_a_subclass_that_changes_no_number_is_a_plain_lora() -> None:
    model, inputs = _with(_Shown), token_batch().inputs
    lora = to_lora(model, Delta(model), bert())
    with torch.no_grad():
        expected = model.backbone(**inputs).last_hidden_state
        torch.testing.assert_close(lora.backbone(**inputs).last_hidden_state, expected)
        torch.testing.assert_close(merge(model.backbone)(**inputs).last_hidden_state, expected)


class _Scaled(StochasticDown):
    def encode(self, batch: Any, folds: int) -> Tensor:
        return 2.0 * super().encode(batch, folds)


def test_a_model_with_a_way_of_its_own_through_the_backbone_is_refused() -> None:
    model = _Scaled(bert(), Bernoulli(), rank=3, num_data=5)
    with refuses(ConfigError, "_Scaled", "backbone"):
        to_lora(model, MeanField(model), bert())
