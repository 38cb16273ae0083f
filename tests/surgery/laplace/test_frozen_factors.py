"""A factor that was frozen in training is no random weight afterwards; and what is not finite is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import Bernoulli, load, predict, save
from bayes_adapters.errors import ConfigError, NonFiniteError
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA, StochasticFactors
from bayes_adapters.sites import Part
from bayes_adapters.surgery.laplace import laplace
from bayes_adapters.surgery.random_weights import random_weights
from bayes_adapters.surgery.swag import Trajectory
from bayes_adapters.training import fit
from tests.helpers import bert, fill_B, token_batch
from tests.instrument import unchecked
from tests.refusals import refuses

pytestmark = pytest.mark.filterwarnings("ignore:The adapter is not at an optimum")


def frozen(part: str) -> tuple[Any, Delta]:
    """A LoRA one factor of which is frozen, filled as by training."""
    torch.manual_seed(0)
    model = fill_B(LoRA(bert(), Bernoulli(), rank=2))
    for layer in model.installed.values():
        layer.get_parameter(f"lora_{part}").requires_grad_(False)
    return model, Delta(model)


@pytest.mark.parametrize(("part", "other"), [("A", "B"), ("B", "A")])
def test_the_frozen_factor_stays_a_point_and_frozen(part: str, other: str, tmp_path: Path) -> None:
    lora, point = frozen(part)
    batch = token_batch()
    before = {path: layer.get_parameter(f"lora_{part}").detach().clone() for path, layer in lora.installed.items()}
    model, guide, log = laplace(lora, point, batch, prior_precision=1.0)
    assert {site.part.name for site in model.sites} == {other}
    assert log.size == sum(layer.get_parameter(f"lora_{other}").numel() for layer in lora.installed.values())
    for path, layer in model.installed.items():
        kept = layer.get_parameter(f"lora_{part}")
        assert torch.equal(kept, before[path])
        assert not kept.requires_grad
    mean = predict(model, guide, batch, mean_only=True).mean
    torch.testing.assert_close(mean, predict(lora, point, batch).mean, rtol=1e-5, atol=1e-6)
    save(tmp_path, model, guide)
    again, guide_again = load(tmp_path, bert())
    assert torch.equal(predict(again, guide_again, batch).mean, predict(model, guide, batch).mean)
    assert again.config()["factors"] == other


def test_swag_gathers_what_moves() -> None:
    lora, point = frozen("A")
    lora.head.requires_grad_(False)
    path = Trajectory(start=1, every=1, columns=2)
    batch = token_batch()
    fit(lora, point, batch, max_steps=3, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), on_step=path, progress=False)
    assert {name[:2] for name in path.means} == {"B."}
    model, guide = path.posterior(lora, point, num_data=5)
    assert {site.part for site in model.sites} == {Part.B}
    assert torch.equal(model.head.weight, lora.head.weight)
    assert bool((predict(model, guide, batch).epistemic > 0).all())


def test_all_frozen_is_taken_as_trained_and_layers_must_agree() -> None:
    lora, point = frozen("A")
    layers = list(lora.installed.values())
    for layer in layers:
        layer.get_parameter("lora_B").requires_grad_(False)
    assert {site.part.name for site in random_weights(lora, point)[0].sites} == {"A", "B"}
    layers[0].get_parameter("lora_B").requires_grad_(True)
    with refuses(ConfigError, lora.layers[0], "'B'", "'AB'", "core"):
        laplace(lora, point, token_batch())
    with refuses(ConfigError, "factors", "'BA'", "AB"):
        StochasticFactors(bert(), Bernoulli(), num_data=5, factors="BA")


@pytest.mark.parametrize("name", ["head.weight", "encoder.layer.0.output.dense.bias"])
def test_what_is_not_finite_is_named_rather_than_an_example(name: str) -> None:
    lora, point = frozen("A")
    owner = lora if name.startswith("head") else lora.backbone
    with torch.no_grad():
        owner.get_parameter(name).fill_(float("nan"))
    with refuses(NonFiniteError, name, "output of example 0"):
        laplace(lora, point, token_batch())


def test_a_flag_is_true_or_false() -> None:
    lora, point = frozen("A")
    with unchecked():
        for options in ({"head": 1}, {"head": "yes"}):
            name, value = next(iter(options.items()))
            with refuses(ConfigError, f"{name} is True or False", repr(value)):
                laplace(lora, point, token_batch(), **options)
        with refuses(ConfigError, "linearised", "'0'", "outputs"):
            laplace(lora, point, token_batch(), linearised=0)  # type: ignore[arg-type]
        with refuses(ConfigError, "head is True or False", 1):
            random_weights(lora, point, head=1)  # type: ignore[arg-type]
