"""``bayes-adapters targets``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bayes_adapters import Bernoulli
from bayes_adapters.models import LoRA
from tests.cli.parts import Run, check_refusal, lines_joined
from tests.helpers import bert, gpt2


def test_targets(home: Path, run: Run) -> None:
    code, out, _ = run("targets", home / "text", "--targets", "query", "value", "--rank", 4)
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert lines[1] == ["encoder.layer.0.attention.self.query", "16", "->", "16", "128"]
    assert len(lines) == 1 + 4 + 2
    model = LoRA(bert(), Bernoulli(), rank=4)
    adapters = sum(p.numel() for name, p in model.trainable_parameters().items() if "lora_" in name)
    assert f"4 layers of BertModel, rank 4: {adapters:,} adapter parameters" in lines_joined(out)
    _, out, _ = run("targets", home / "text", "--targets", "all-linear", "--exclude", "dense", "--layers", 1)
    assert "3 layers" in out
    assert "layer.0." not in out
    _, out, _ = run("targets", home / "text", "--pattern", r".*layer\.0.*key")
    assert "1 layers" in out
    check_refusal(run("targets", home / "text", "--targets", "qery"), "'qery'", "mean 'query'")
    check_refusal(run("targets", home / "text", "--pattern", ""), "targets are empty")
    check_refusal(run("targets", home / "text", "--layers", 7), "block [7]")
    check_refusal(run("targets", home / "text", "--rank", 0), "rank", "got 0")
    check_refusal(run("targets", home / "nowhere"), "no model folder")
    check_refusal(run("targets", home / "adapter"), "no config.json")


def test_targets_of_conv1d_layers_and_of_foreign_folders(run: Run, tmp_path: Path) -> None:
    gpt2().save_pretrained(tmp_path / "gpt2")
    _, out, _ = run("targets", tmp_path / "gpt2", "--targets", "c_attn")
    assert "16 -> 48" in out
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "abacus"}')
    check_refusal(run("targets", tmp_path / "odd"), "no model that transformers can build", "abacus")


@pytest.mark.parametrize(("value", "says"), [("big", "hidden_size"), (-8, "negative dimension")])
def test_a_config_that_no_model_can_have(value: object, says: str, run: Run, tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": value}))
    check_refusal(run("targets", tmp_path), "no model that transformers can build", says)
