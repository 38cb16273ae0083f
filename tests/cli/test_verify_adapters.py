"""Adapters that cannot verify, each with one clear line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import BertTokenizerFast

from bayes_adapters import Gaussian, save
from bayes_adapters.backbones import speech_encoder, text_backbone
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from bayes_adapters.speech.verify import Verifier, VerifyTask
from tests.cli.parts import Run, check_refusal, task
from tests.files.parts import edit_json
from tests.helpers import bert
from tests.refusals import refuses


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_json(folder, lambda about: change(about["task"]))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, ["does not exist", "bayes_adapters.save"]),
        (lambda f: (f / "adapter.json").write_text("{"), ["is not JSON"]),
        (lambda f: (f / "adapter.safetensors").write_bytes(b"12345"), ["has 5 bytes"]),
        (lambda f: edit(f, lambda t: t.update(task="sentiment")), ["'sentiment'", "not for 'verify_prompts'"]),
        (lambda f: edit(f, lambda t: t["thresholds"].pop("total_q90")), ["thresholds.total_q90"]),
        (lambda f: edit(f, lambda t: t.update(max_seconds=-1, frames_per_second=7)), ["max_seconds, frames_"]),
        (lambda f: edit(f, lambda t: t.pop("max_tokens")), ["misstates max_tokens"]),
        (lambda f: edit(f, lambda t: t.update(max_tokens=2.5)), ["misstates max_tokens"]),
        (lambda f: edit(f, lambda t: t.update(max_tokens=0)), ["misstates max_tokens"]),
        (lambda f: edit(f, lambda t: t.update(text_backbone=str(f.parent / "gone"))), ["no model folder", "gone"]),
    ],
)
def test_an_adapter_that_cannot_verify(home: Path, run: Run, tmp_path: Path, spoil: Any, says: list[str]) -> None:
    shutil.copytree(home / "adapter", tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", tmp_path / "adapter"), *says)


def test_an_altered_adapter_is_refused_before_the_models_it_names_are_looked_for(
    home: Path, run: Run, tmp_path: Path
) -> None:
    shutil.copytree(home / "adapter", tmp_path / "adapter")
    named = str(tmp_path / "named")
    edit_json(tmp_path / "adapter", lambda about: about["task"].update(text_backbone=named), repair=False)
    answer = run("verify", home / "good.wav", "one", "--adapter", tmp_path / "adapter")
    check_refusal(answer, "adapter.json' was altered after saving")
    assert named not in answer[2]
    shutil.rmtree(tmp_path / "adapter")
    shutil.copytree(home / "adapter", tmp_path / "adapter")
    edit_json(tmp_path / "adapter", lambda about: about["task"].update(text_backbone=named))
    weights = tmp_path / "adapter" / "adapter.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    answer = run("verify", home / "good.wav", "one", "--adapter", tmp_path / "adapter")
    check_refusal(answer, "adapter.safetensors", "checksum differs")
    assert named not in answer[2]


def test_an_adapter_on_another_backbone_or_without_a_task(home: Path, run: Run, tmp_path: Path) -> None:
    bert(seed=9).save_pretrained(tmp_path / "other")
    BertTokenizerFast(str(home / "vocab.txt")).save_pretrained(tmp_path / "other")
    shutil.copytree(home / "adapter", tmp_path / "adapter")
    edit(tmp_path / "adapter", lambda t: t.update(text_backbone=str(tmp_path / "other")))
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", tmp_path / "adapter"), "another backbone")
    model = LoRA(bert(), Gaussian())
    save(tmp_path / "plain", model, Delta(model))
    check_refusal(run("verify", home / "good.wav", "one", "--adapter", tmp_path / "plain"), "without a task")
    backbone, tokenizer = text_backbone(home / "text")
    model = LoRA(backbone, Gaussian())
    with refuses(ConfigError, "'bernoulli'", "'gaussian'"):
        Verifier(model, Delta(model), tokenizer, speech_encoder(home / "speech", 2.0), VerifyTask(**plain(home)))


def plain(home: Path) -> dict[str, Any]:
    return {name: value for name, value in task(home).items() if name != "task"}
