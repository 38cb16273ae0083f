"""``fit`` trains what ``build`` made by the recipe of its system, unless told otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import MeanField
from bayes_adapters.systems import SYSTEMS
from bayes_adapters.training import fit
from tests.refusals import refuses
from tests.systems.parts import small


def log(name: str, **options: Any) -> list[dict[str, float]]:
    torch.manual_seed(0)
    model, guide, data = small(name)
    options = {"max_steps": 4, "progress": False} | options
    found = fit(model, guide, [data[:2], data[2:]], **options).history
    return [{key: value for key, value in row.items() if key != "examples_per_second"} for row in found]


@pytest.mark.parametrize("name", ["caliber-x", "blob"])
def test_the_default_is_the_recipe_of_the_system(name: str) -> None:
    assert log(name) == log(name, recipe=SYSTEMS[name].training)
    assert log(name)[0]["kl_weight"] < 1.0
    assert [row["kl_weight"] for row in log(name, recipe=None)] == [1.0, 1.0]


def test_the_kl_of_caliber_is_that_of_its_recipe() -> None:
    """The published weight counts per site and token: 1e-4 of the mean over sites and tokens, not of the sum."""
    weighed = log("caliber-x")[0]
    summed = log("caliber-x", recipe=None, kl_weight=1e-4)[0]
    assert weighed["kl_weight"] == summed["kl_weight"] == 1e-4
    assert weighed["kl"] < 0.3 * summed["kl"]


def test_what_is_given_beats_the_recipe_with_what_belongs_to_it() -> None:
    own = log("c-lora", kl_weight=0.5, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    by_hand = log("c-lora", recipe=None, kl_weight=0.5, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))
    assert own == by_hand, "neither the recipe's schedule of the learning rate nor its mode of the KL"
    assert [row["lr"] for row in own] == [0.01, 0.01]
    clipped = log("caliber-x", kl_weight=0.5, clip_norm=1e-9)
    assert clipped != log("caliber-x", kl_weight=0.5)


def test_the_log_says_what_was_taken(capsys: pytest.CaptureFixture[str]) -> None:
    log("caliber-x", progress=True, num_samples=3)
    line = next(line for line in capsys.readouterr().err.splitlines() if "recipe" in line)
    for part in (
        "optimizer AdamW, lr 0.0001",
        "kl_weight Constant(weight=0.0001)",
        "kl_mode per_token_mean",
        "clip_norm 1.0",
    ):
        assert part in line
    assert "num_samples" not in line
    assert "on_step" not in line
    log("caliber-x", progress=True, recipe=None)
    assert "recipe" not in capsys.readouterr().err


def test_a_guide_of_ones_own_has_no_recipe() -> None:
    model, _, data = small("c-lora")
    guide = MeanField(model)
    assert guide.recipe is None
    assert fit(model, guide, data, epochs=1, progress=False).history[0]["kl_weight"] == 1.0
    with refuses(ConfigError, "epochs", "max_steps"):
        fit(model, guide, data, progress=False)


def test_data_of_unknown_size_are_told_how_to_do_without() -> None:
    model, guide, data = small("c-lora")
    with refuses(ConfigError, "recipe=None", "generator"):
        fit(model, guide, (data for _ in range(1)), epochs=1)
    with refuses(ConfigError, "'paper'", "'own'"):
        fit(model, guide, data, recipe="paper", epochs=1)
