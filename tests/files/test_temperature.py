"""The posterior's temperature is the guide's, is saved with it, and counts wherever draws are made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import load, predict, save
from bayes_adapters.analysis.arviz import _outcomes
from bayes_adapters.analysis.width import relative_widths
from bayes_adapters.cli import main
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files._card import card
from bayes_adapters.files._folder import describe
from bayes_adapters.guides import MeanField
from bayes_adapters.inference.draws import weight_draw, weight_mean
from bayes_adapters.surgery._rebuild import rebuilt
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.training import tune
from tests.files.parts import edit_json, pair
from tests.helpers import bert, core_model, token_batch
from tests.refusals import refuses

BATCH = token_batch()


def tempered(tau: float = 0.25) -> tuple[Any, Any]:
    model, guide = pair(granularity="global", guide=MeanField)
    guide.posterior_temperature = tau
    return model, guide


def draws(model: Any, guide: Any, **options: Any) -> torch.Tensor:
    found = predict(model, guide, BATCH, num_samples=4, return_samples=True, **options).samples
    assert found is not None
    return found


def test_what_was_chosen_is_used_after_load_and_an_argument_wins(tmp_path: Path) -> None:
    model, guide = tempered()
    own = draws(model, guide)
    assert torch.equal(own, draws(model, guide, temperature=0.25))
    assert not torch.allclose(own, draws(model, guide, temperature=1.0))
    save(tmp_path, model, guide)
    model, again = load(tmp_path, bert())
    assert again.posterior_temperature == 0.25
    assert torch.equal(draws(model, again), own)
    again.posterior_temperature = 1.0
    assert torch.equal(draws(model, again), draws(model, again, temperature=1.0))
    third = 1 / 3
    again.posterior_temperature = third
    save(tmp_path, model, again)
    assert load(tmp_path, bert())[1].posterior_temperature == third


def test_an_adapter_without_one_is_written_as_before_and_older_libraries_refuse_one_with(tmp_path: Path) -> None:
    for tau, version in ((1.0, 1), (0.5, 2)):
        save(tmp_path, *tempered(tau))
        about = json.loads((tmp_path / "adapter.json").read_text())
        assert about["format_version"] == version
        assert about["guide"].get("posterior_temperature", 1.0) == tau
        assert ("posterior_temperature" in about["guide"]) == (tau != 1.0)


def test_show_and_the_card_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for tau in (0.25, 1.0):
        save(tmp_path, *tempered(tau))
        assert main(["show", str(tmp_path)]) == 0
        lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
        assert (["temperature", "0.25"] in lines) == (tau != 1.0)
        assert ("at temperature 0.25" in card(describe(tmp_path), "a/b")) == (tau != 1.0)


def test_every_maker_of_draws_knows_it() -> None:
    model, guide = tempered()
    cold, mean = weight_draw(model, guide, 3), weight_mean(model, guide)
    widths = relative_widths(model, guide, BATCH)
    linear = draws(model, guide, linearised=True)
    exported = to_lora(model, guide, bert(), draw=3)
    guide.posterior_temperature = 1.0
    for name, value in weight_draw(model, guide, 3).items():
        torch.testing.assert_close(cold[name] - mean[name], 0.5 * (value - mean[name]))
    for name, width in relative_widths(model, guide, BATCH).items():
        assert widths[name] == pytest.approx(0.5 * width)
    assert torch.equal(linear, draws(model, guide, linearised=True, temperature=0.25))
    other = to_lora(model, guide, bert(), draw=3)
    same = [torch.equal(a, b) for a, b in zip(exported.parameters(), other.parameters(), strict=True)]
    assert not all(same)


def test_draws_for_arviz_are_tempered() -> None:
    _, guide = tempered(1e-12)
    with torch.no_grad():
        (outcome,) = _outcomes(guide, BATCH, 2, 2)
        torch.testing.assert_close(outcome.logits[0], outcome.logits[1])
        guide.posterior_temperature = 1.0
        (outcome,) = _outcomes(guide, BATCH, 2, 2)
    assert not torch.allclose(outcome.logits[0], outcome.logits[1])


def test_rebuilding_keeps_it() -> None:
    assert rebuilt(*tempered())[1].posterior_temperature == 0.25


def test_tune_gives_it_to_the_guide() -> None:
    def make() -> tuple[Any, Any]:
        model = core_model("global", rank=2, num_data=5)
        return model, MeanField(model, init_scale=0.3)

    options: dict[str, Any] = {"max_steps": 1, "progress": False, "narrow": 0.0, "share": 0.0}
    best = tune(make, BATCH, BATCH, {"kl_weight": [0.1]}, temperatures=[0.25], **options)
    assert best.temperature == best.guide.posterior_temperature == 0.25
    assert torch.equal(draws(best.model, best.guide), draws(best.model, best.guide, temperature=0.25))


def test_what_is_no_temperature_is_refused(tmp_path: Path) -> None:
    model, guide = tempered(-1.0)
    for use in (lambda: predict(model, guide, BATCH), lambda: save(tmp_path, model, guide)):
        with refuses(ConfigError, "posterior_temperature", -1.0):
            use()
    save(tmp_path, *tempered())
    for wrong in (0, "cold", True, None):
        edit_json(tmp_path, lambda about, wrong=wrong: about["guide"].update(posterior_temperature=wrong))
        with refuses(AdapterFileError, "guide.posterior_temperature"):
            load(tmp_path, bert())
