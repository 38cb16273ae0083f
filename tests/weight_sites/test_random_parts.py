"""Random parts other than the core: their sites, and a draw is the weight of the adapted layer."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes_adapters import Batch, Bernoulli, adapted_layers
from bayes_adapters.adapters import forward_pass
from bayes_adapters.adapters import linear as layer_module
from bayes_adapters.adapters.forward_pass import ForwardPass, running
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.adapters.reparametrisation import Draw
from bayes_adapters.adapters.rows import Rows
from bayes_adapters.errors import ConfigError
from bayes_adapters.models import AdapterDropout, DiagonalCore, LoRA
from bayes_adapters.priors import Prior, zero_normal
from bayes_adapters.sites import REAL, Granularity, Part, Site, build_sites
from tests.helpers import WIDTH, bert, fill_B, token_batch
from tests.refusals import refuses
from tests.weight_sites.parts import down


def test_sites_are_grouped_by_shape() -> None:
    sizes = {"a": (2, 4, 4), "b": (2, 4, 8), "c": (2, 4, 4)}
    found = {s.name: (s.layers, s.shape) for s in build_sites(sizes, (Part.A, Part.B), Granularity.GLOBAL)}
    assert found == {
        "A.global": (("a", "b", "c"), (3, 2, 4)),
        "B.global.4x2": (("a", "c"), (2, 4, 2)),
        "B.global.8x2": (("b",), (1, 8, 2)),
    }
    alone = build_sites(sizes, (Part.A,), Granularity.GLOBAL, grouped=False)
    assert [(s.name, s.shape) for s in alone] == [("A.a", (1, 2, 4)), ("A.b", (1, 2, 4)), ("A.c", (1, 2, 4))]


EVERY = sorted({*REAL, Part.MASK, Part("own", ("d_out", 3))}, key=lambda part: part.name)


@pytest.mark.parametrize("part", EVERY, ids=lambda part: part.name)
def test_a_part_is_the_same_constant_in_a_copy_and_from_a_file(part: Part) -> None:
    assert copy.deepcopy(part) is part
    again = pickle.loads(pickle.dumps(part))
    assert again == part
    assert (again is part) is (part.name != "own")


@pytest.mark.parametrize("part", [Part.A, Part.CORE, Part.DIAGONAL, Part.B])
@pytest.mark.parametrize("granularity", [Granularity.GLOBAL, Granularity.TOKEN])
def test_the_rank_of_a_site_is_that_of_its_layers(part: Part, granularity: Granularity) -> None:
    """r = 2 of a layer 6 → 4: B has its ranks along the second axis."""
    (site,) = build_sites({"l": (2, 6, 4)}, (part,), granularity)
    assert site.rank == 2


def test_a_mask_has_no_rank() -> None:
    with refuses(ConfigError, "'mask.a'"):
        _ = Site("mask.a", Part.MASK, ("a",), (4,), Granularity.TOKEN).rank


def test_conditioning_A_sets_the_weight() -> None:
    model, batch = down(), token_batch()
    plain = LoRA(bert(), Bernoulli(), rank=3)
    value = torch.randn(4, 3, WIDTH)
    with torch.no_grad():
        for i, (layer, own) in enumerate(
            zip(adapted_layers(plain.backbone).values(), adapted_layers(model.backbone).values(), strict=True)
        ):
            layer.lora_A.copy_(value[i])
            layer.lora_B.copy_(own.lora_B)
        plain.head.load_state_dict(model.head.state_dict())
        expected = plain(batch)
        found = pyro.poutine.condition(model.eval(), {"A.global": value})(batch)
    torch.testing.assert_close(found, expected)


def test_conditioning_the_diagonal_scales_the_rows_of_A() -> None:
    model, batch = fill_B(DiagonalCore(bert(), Bernoulli(), rank=3, num_data=50)), token_batch()
    plain = LoRA(bert(), Bernoulli(), rank=3)
    value = torch.rand(4, 3)
    with torch.no_grad():
        for i, (layer, own) in enumerate(
            zip(adapted_layers(plain.backbone).values(), adapted_layers(model.backbone).values(), strict=True)
        ):
            layer.lora_A.copy_(value[i][:, None] * own.lora_A)
            layer.lora_B.copy_(own.lora_B)
        plain.head.load_state_dict(model.head.state_dict())
        torch.testing.assert_close(
            pyro.poutine.condition(model, {"diagonal.global": value})(batch), plain(batch), rtol=1e-5, atol=1e-6
        )


def test_a_mask_of_ones_over_the_mean_and_a_mask_of_zeros() -> None:
    model, batch = fill_B(AdapterDropout(bert(), Bernoulli(), rank=3, drop=0.25, granularity="global")), token_batch()
    assert [s.name for s in model.sites] == ["mask.global"]
    with torch.no_grad():
        with model.adapters_disabled():
            frozen = model(batch)
        nothing = pyro.poutine.condition(model, {"mask.global": torch.zeros(4, WIDTH)})(batch)
        everything = pyro.poutine.condition(model, {"mask.global": torch.full((4, WIDTH), 0.75)})(batch)
        plain = LoRA(bert(), Bernoulli(), rank=3)
        for a, b in zip(adapted_layers(plain.backbone).values(), adapted_layers(model.backbone).values(), strict=True):
            a.lora_A.copy_(b.lora_A)
            a.lora_B.copy_(b.lora_B)
        plain.head.load_state_dict(model.head.state_dict())
        torch.testing.assert_close(nothing, frozen)
        torch.testing.assert_close(everything, plain(batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("granularity", "shape"), [("token", (5, 7)), ("sequence", (5, 1)), ("global", ())])
def test_a_mask_is_divided_by_the_mean_of_its_own_layers_prior(granularity: str, shape: tuple[int, ...]) -> None:
    """With the mean in place of the draw, the layer is plain LoRA."""
    prior: Any = {"*query": dist.Bernoulli(probs=torch.tensor(0.25)), "*": dist.Bernoulli(probs=torch.tensor(0.8))}
    if granularity == "global":  # one site of four layers: query and value of each block
        prior = dist.Bernoulli(probs=torch.tensor([0.25, 0.8, 0.25, 0.8])[:, None].expand(4, WIDTH))
    model = fill_B(AdapterDropout(bert(), Bernoulli(), rank=3, prior=prior, granularity=granularity))
    values = {}
    for site in model.sites:
        means = torch.tensor([0.25 if path.endswith("query") else 0.8 for path in site.layers])
        means = means[:, None] if granularity == "global" else means
        values[site.name] = means.expand(*shape, *site.shape).contiguous()
    plain, batch = LoRA(bert(), Bernoulli(), rank=3), token_batch()
    with torch.no_grad():
        for a, b in zip(adapted_layers(plain.backbone).values(), adapted_layers(model.backbone).values(), strict=True):
            a.lora_A.copy_(b.lora_A)
            a.lora_B.copy_(b.lora_B)
        plain.head.load_state_dict(model.head.state_dict())
        found = pyro.poutine.condition(model, values)(batch)
        torch.testing.assert_close(found, plain(batch), rtol=1e-5, atol=1e-6)


PARTS = (Part.MASK, Part.A, Part.CORE, Part.B)


def _all_random() -> tuple[AdaptedLinear, dict[Part, torch.Tensor], ForwardPass]:
    sites = build_sites({"l": (2, 6, 4)}, PARTS, Granularity.GLOBAL)
    values = {site.part: torch.randn(site.event) for site in sites}
    values[Part.MASK] = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])
    prior = Prior({"mask.*": dist.Bernoulli(probs=torch.tensor(0.75)), "*": zero_normal()}, sites)
    used = values | {Part.MASK: values[Part.MASK] / 0.75}  # what is kept is divided by the prior's mean
    weights = {(part, "l"): Draw(value, part.diagonal) for part, value in used.items()}
    batch = Batch({"input_ids": torch.zeros(3, 5, dtype=torch.long)})
    layer = AdaptedLinear(nn.Linear(6, 4), 2, 6.0, path="l", sites=sites)
    return layer, values, ForwardPass(Rows(batch), prior, weights, len(sites))


def test_the_layer_computes_its_formula_from_the_draws_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, value, state = _all_random()
    asked: list[ForwardPass | None] = []

    def current_pass() -> ForwardPass | None:
        asked.append(found := forward_pass.current_pass())
        return found

    monkeypatch.setattr(layer_module, "current_pass", current_pass)
    x = torch.randn(3, 5, 6)
    with running(state):
        h = layer(x)
    z = (x * value[Part.MASK] / 0.75) @ value[Part.A].T @ value[Part.CORE].T @ value[Part.B].T
    torch.testing.assert_close(h, layer.base_layer(x) + 3.0 * z)
    assert asked == [state], "one lookup, and its draws are handed on"


@pytest.mark.parametrize("part", [*PARTS, Part.DIAGONAL])
def test_a_layer_with_a_random_part_runs_in_its_model_only(part: Part) -> None:
    sites = build_sites({"l": (2, 6, 4)}, (part,), Granularity.GLOBAL)
    layer = AdaptedLinear(nn.Linear(6, 4), 2, 6.0, path="l", sites=sites)
    with refuses(ConfigError, "'l'", part.value, "model.adapters_disabled()"):
        layer(torch.randn(3, 6))
