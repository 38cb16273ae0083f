"""Papers' training comes out as written."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.schedules import Blundell
from bayes_adapters.surgery.pruning import PruneSchedule
from bayes_adapters.systems import SYSTEMS
from bayes_adapters.systems.recipes import Rate, Recipe, Unit, window
from bayes_adapters.training import fit
from bayes_adapters.training._optimizer import trainable
from examples.studies.matrix_cells import SIZE
from tests.refusals import refuses
from tests.systems.parts import NAMES, small


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_trains_the_system(name: str) -> None:
    model, guide, data = small(name)
    recipe = SYSTEMS[name].training
    options = recipe.fit_options(model, guide, num_data=SIZE, batch_size=2, max_steps=3)
    result = fit(model, guide, [data[:2], data[2:]], progress=False, validation=data, **options)
    assert result.steps == 3
    assert all(math.isfinite(row["loss"]) for row in result.history)
    assert predict(model, guide, data, num_samples=recipe.num_samples).mean.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_says_when_to_stop_and_names_parameters_that_exist(name: str) -> None:
    recipe = SYSTEMS[name].training
    assert (recipe.steps is None) != (recipe.epochs is None)
    model, guide, _ = small(name)
    optimizer = recipe.fit_options(model, guide, num_data=1000)["optimizer"]
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(trainable(model, guide))
    assert len(optimizer.param_groups) == 1 + len(recipe.rates)


def test_rates_of_bayeslora_2026() -> None:
    model, guide, _ = small("bayeslora-2026")
    optimizer = SYSTEMS["bayeslora-2026"].training.fit_options(model, guide, num_data=1000)["optimizer"]
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    found = {name: rates[id(p)] for name, p in trainable(model, guide).items()}
    assert found["model.head.weight"] == found["model.head.bias"] == (1e-2, 0.01)
    assert {v for k, v in found.items() if k.startswith("guide.log_variance")} == {(1e-4, 0.0)}
    assert {v for k, v in found.items() if k.startswith("guide.loc")} == {(1e-3, 0.0)}


@pytest.mark.parametrize(
    ("examples", "expected"),
    [(640, 316), (1116, 393), (2248, 517), (2556, 544), (4956, 706), (2488, 538), (9424, 909), (512, 289)],
)
def test_window_of_the_papers_data_sets(examples: int, expected: int) -> None:
    """N is what a loader with batches of 4 yields."""
    assert window(examples, 4) == expected
    assert window(1, 1000) == 1


def last_of_a_window(recipe: Recipe, model: Any, guide: Any, num_data: int, size: int) -> tuple[Any, float]:
    options = recipe.fit_options(model, guide, num_data=num_data, batch_size=size)
    schedule = options["kl_weight"]
    assert isinstance(schedule, Blundell)
    assert schedule.window == window(num_data, size)
    step = schedule.window - 1
    pi = 2.0**schedule.window / (2.0 ** (schedule.window + 1) - 1)
    terms = ELBO(model, guide, kl_weight=schedule, kl_mode=options["kl_mode"]).terms
    return (lambda data: terms(data, step)), pi


@pytest.mark.parametrize(("name", "most"), [("blob", 1.0), ("scalabl", 0.1)])
def test_a_kl_of_weights_is_weighted_as_in_the_code(name: str, most: float) -> None:
    """loss = mean nll + w π_i · KL of all weights, whatever N."""
    model, guide, data = small(name)
    terms, pi = last_of_a_window(SYSTEMS[name].training, model, guide, SIZE, SIZE)
    torch.manual_seed(3)
    found = terms(data).kl
    torch.manual_seed(3)
    guide(data)
    whole = sum(
        torch.distributions.kl_divergence(guide.trace.nodes[s.name]["fn"].base_dist, model.prior.of(s).base_dist).sum()
        for s in model.sites
    )
    torch.testing.assert_close(found, most * pi * whole, rtol=1e-4, atol=1e-6)


def test_c_loras_kl_is_weighted_as_in_the_code() -> None:
    """loss = mean nll + π_i · 1e-6 / L · KL summed over batch, layers and tokens (here real ones)."""
    model, guide, data = small("c-lora")
    terms, pi = last_of_a_window(SYSTEMS["c-lora"].training, model, guide, 512, SIZE)
    torch.manual_seed(3)
    found = terms(data).kl
    torch.manual_seed(3)
    whole = ELBO(model, guide).terms(data).kl * SIZE
    torch.testing.assert_close(found, 1e-6 * pi / 2 * whole, rtol=1e-4, atol=0.0)
    assert len(model.sites) == 2


def test_bayeslora_2026_weighs_the_whole_kl_and_prunes() -> None:
    model, guide, data = small("bayeslora-2026")
    options = SYSTEMS["bayeslora-2026"].training.fit_options(model, guide, num_data=SIZE, batch_size=SIZE)
    whole = ELBO(model, guide).terms(data).kl * SIZE
    found = ELBO(model, guide, kl_weight=options["kl_weight"]).terms(data).kl
    torch.testing.assert_close(found, 1e-6 * whole, rtol=1e-4, atol=0.0)
    assert options["on_step"] == PruneSchedule(threshold=4.0, start=2000, every=2000)
    assert (options["max_steps"], options["clip_norm"]) == (9999, 0.1)


def test_the_point_estimates_of_the_papers_have_no_kl() -> None:
    for name in ("lora", "cola", "wander", "lora-fusion"):
        model, guide, _ = small(name)
        assert SYSTEMS[name].training.fit_options(model, guide, num_data=100)["kl_weight"](5) == 0.0
    model, guide, _ = small("caliber-x")
    options = SYSTEMS["caliber-x"].training.fit_options(model, guide, num_data=100)
    assert (options["kl_weight"](0), options["kl_mode"]) == (1e-4, KLMode.PER_TOKEN_MEAN)


def rates_of(name: str, num_data: int, **options: Any) -> tuple[list[float], int]:
    model, guide, _ = small(name)
    found = SYSTEMS[name].training.fit_options(model, guide, num_data=num_data, **options)
    optimizer, steps = found["optimizer"], found["max_steps"]
    scheduler = found["scheduler"](optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates, steps


def test_warm_up_and_decay() -> None:
    rates, steps = rates_of("lora", 100, max_steps=100)
    assert steps == 100
    assert max(rates) == pytest.approx(1e-4)
    assert rates[:6] == pytest.approx([1e-4 * i / 6 for i in range(1, 7)])
    assert rates[6:] == pytest.approx([1e-4 * (100 - i) / 94 for i in range(6, 100)])
    rates, steps = rates_of("c-lora", 512)
    assert steps == 1500
    assert rates[299] == pytest.approx(1e-4)  # 6 % of 5000
    assert rates[1499] == pytest.approx(1e-4 * 3501 / 4700)


def test_colas_rate_falls_by_epochs() -> None:
    rates, steps = rates_of("cola", 200, batch_size=80)
    assert steps == 150 * 3
    assert rates == pytest.approx([1e-4 * (1 - step // 3 / 150) ** 0.9 for step in range(450)])


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"num_data": 0}, ("num_data", 1, 0)),
        ({"num_data": 9, "batch_size": 0}, ("batch_size", 1, 0)),
        ({"num_data": 9, "batch_size": 10}, (9, 10, "num_data", "batch_size")),
        ({"num_data": 9, "max_steps": 0}, ("max_steps", 1, 0)),
    ],
)
def test_wrong_sizes_of_a_recipe(options: dict[str, Any], facts: tuple[object, ...]) -> None:
    model, guide, _ = small("lora")
    with refuses(ConfigError, *facts):
        SYSTEMS["lora"].training.fit_options(model, guide, **options)


def test_a_recipe_with_nothing_to_train() -> None:
    model, guide, _ = small("lora")
    model.requires_grad_(False)
    with refuses(ConfigError, "requires_grad=True"):
        Recipe(lr=1e-3, steps=1, rates={"model.head.*": Rate(1.0)}, kl_unit=Unit.WHOLE).fit_options(
            model, guide, num_data=9
        )


@pytest.mark.parametrize("name", ["c-lora", "blob", "bayeslora-2026", "caliber-x"])
def test_fit_takes_a_recipe(name: str) -> None:
    """One call trains as the options that the recipe gives by itself; what is given beats them."""
    recipe = SYSTEMS[name].training
    torch.manual_seed(0)
    model, guide, data = small(name)
    parts = [data[:2], data[2:]]
    result = fit(model, guide, parts, recipe=recipe, max_steps=4, progress=False, seed=3)
    torch.manual_seed(0)
    other, q, _ = small(name)
    options = recipe.fit_options(other, q, num_data=SIZE, batch_size=2, max_steps=4)
    expected = fit(other, q, parts, progress=False, seed=3, **options)
    for key in ("loss", "kl", "kl_weight", "lr", "grad_norm"):
        assert [log[key] for log in result.history] == [log[key] for log in expected.history]
    model, guide, _ = small(name)
    log = fit(model, guide, parts, recipe=recipe, epochs=1, kl_weight=0.5, progress=False).history
    assert [row["kl_weight"] for row in log] == [0.5]


def test_a_recipes_schedules_last_as_long_as_the_run() -> None:
    """Linear decay over epochs · ⌈N / (B · accumulate)⌉ steps ends near 0 whichever way the length is said."""
    rates = []
    for options in ({"epochs": 3}, {"max_steps": 3}, {"epochs": 9, "max_steps": 3}):
        model, guide, data = small("lora")
        parts = [data[i : i + 1] for i in range(SIZE)]
        settings: dict[str, Any] = {"accumulate": SIZE, "progress": False} | options
        rates.append(
            [log["lr"] for log in fit(model, guide, parts, recipe=SYSTEMS["lora"].training, **settings).history]
        )
    assert rates[0] == rates[1] == rates[2]
    assert len(rates[0]) == 3
    assert rates[0][0] > rates[0][-1] > 0


def test_one_batch_is_a_data_set_to_a_recipe() -> None:
    logs = []
    for in_a_list in (False, True):
        torch.manual_seed(0)
        model, guide, data = small("lora")
        given = [data] if in_a_list else data
        logs.append(fit(model, guide, given, recipe=SYSTEMS["lora"].training, epochs=2, progress=False).history)
    assert [log["nll"] for log in logs[0]] == [log["nll"] for log in logs[1]]


def test_what_is_no_recipe_or_no_size_is_refused() -> None:
    model, guide, data = small("lora")
    with refuses(ConfigError, "fit_options=3"):
        fit(model, guide, data, recipe=SimpleNamespace(fit_options=3), epochs=1)  # type: ignore[arg-type]
    with refuses(ConfigError, "generator"):
        fit(model, guide, (data for _ in range(1)), recipe=SYSTEMS["lora"].training, epochs=1)
