"""The ablation is a grid of variants that refuses other settings."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bayes_adapters.analysis.records import read_records
from examples.studies.verify_prompts import ablation
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.experiment import Settings
from tests.studies.verify_prompts.parts import SETTINGS

pytestmark = pytest.mark.usefixtures("offline")


def test_the_ablation_is_a_grid_that_refuses_other_settings(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Corpus, "load", lambda: corpus)
    small = replace(SETTINGS, reliability=False, conditions=("clean",))
    monkeypatch.setitem(ablation.VARIANTS, "plain", small)
    monkeypatch.setitem(ablation.VARIANTS, "prior-1", replace(small, prior_scale=1.0))
    runs, out = tmp_path / "runs", tmp_path / "deeper" / "ablation.json"
    options = ["--device", "cpu", "--seeds", "1", "--runs", str(runs), "--out", str(out)]
    runs.mkdir()
    for name in ("plain", "prior-1"):
        monkeypatch.setattr(sys, "argv", ["ablation", *options, "--one", name, "0"])
        assert ablation.Ablation().main() == 0
    before = (runs / "plain-0.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["ablation", *options, "--variants", "plain", "prior-1"])
    assert ablation.Ablation().main() == 0, (
        capsys.readouterr().err
    )  # both are done: nothing is run, the records are gathered
    assert [record.method for record in read_records(out)] == ["plain", "prior-1"]
    assert read_records(out)[0].nll != read_records(out)[1].nll
    assert (runs / "plain-0.json").read_bytes() == before
    assert json.loads((runs / "prior-1" / "settings.json").read_text())["prior_scale"] == 1.0
    monkeypatch.setitem(ablation.VARIANTS, "plain", replace(small, kl_weight=0.5))
    assert ablation.Ablation().main() == 2
    assert "kl_weight: 0.0001 there, 0.5 now" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["ablation", *options, "--variants", "prior-1"])
    assert ablation.Ablation().main() == 2  # its records would be gathered too
    assert "kl_weight: 0.0001 there, 0.5 now" in capsys.readouterr().err
    (runs / "plain" / "settings.json").unlink()
    assert ablation.Ablation().main() == 2
    assert "records of 'plain', such as plain-0.json, and nothing says" in capsys.readouterr().err
    (runs / "plain-0.json").unlink()
    assert ablation.Ablation().main() == 0
    assert [record.method for record in read_records(out)] == ["prior-1"]


def test_the_variants_tell_prior_and_kl_weight_apart() -> None:
    plain, wide, light, both = (ablation.VARIANTS[n] for n in ("plain", "prior-1", "kl-x0.1", "wide-prior"))
    assert replace(plain, prior_scale=1.0) == wide
    assert replace(plain, kl_weight=1e-5) == light
    assert replace(wide, kl_weight=1e-5) == both


@pytest.mark.parametrize("name", list(ablation.VARIANTS))
def test_every_variant_is_a_mix_that_can_be_trained_on(name: str, corpus: Corpus) -> None:
    variant = ablation.VARIANTS[name]
    assert len(corpus.training(variant.mix, seed=0)) == 24
    assert variant.conditions[0] == "clean"
    if name == "all":
        assert replace(variant, conditions=Settings().conditions) == Settings()
