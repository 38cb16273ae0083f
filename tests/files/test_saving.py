"""What is written beside the tensors, what save refuses, and what it spares."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

from bayes_adapters import load, load_task, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files import describe
from bayes_adapters.guides import Contextual
from tests.files.parts import pair, scramble
from tests.helpers import bert
from tests.refusals import refuses


def test_task_and_description(tmp_path: Path) -> None:
    model, guide = pair()
    save(tmp_path, model, guide, task={"task": "demo", "thresholds": {"q90": 0.25}})
    assert load_task(tmp_path) == {"task": "demo", "thresholds": {"q90": 0.25}}
    about = describe(tmp_path)
    assert about["num_data"] == 50
    assert about["base"]["class"] == "BertModel"
    assert about["versions"].keys() == {"python", "bayes-adapters", "torch", "pyro-ppl", "transformers"}
    assert about["weights"]["sha256"] == hashlib.sha256((tmp_path / "adapter.safetensors").read_bytes()).hexdigest()
    save(tmp_path, model, guide)
    with refuses(AdapterFileError, str(tmp_path), "bayes_adapters.save(..., task=...)"):
        load_task(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]


def test_save_refuses_what_it_could_not_load_again(tmp_path: Path) -> None:
    class Mine(Contextual):
        pass

    class Twin(Contextual):
        name = "contextual"

    model, guide = pair()
    with refuses(ConfigError, "Contextual", "StochasticCore"):
        save(tmp_path / "a", pair()[0], guide)
    with refuses(ConfigError, "Mine", "'contextual'"):
        save(tmp_path / "a", model, Mine(model))
    with refuses(ConfigError, "'contextual'", "Twin"):
        save(tmp_path / "a", model, Twin(model))
    with refuses(ConfigError, "task", "set"):
        save(tmp_path / "a", model, guide, task={"x": {1, 2}})
    with refuses(ConfigError, "task", "JSON"):
        save(tmp_path / "a", model, guide, task={"x": float("nan")})
    next(p for n, p in model.backbone.named_parameters() if "LayerNorm" in n).requires_grad_(True)
    with refuses(ConfigError, 1, "LayerNorm", "requires_grad_(False)"):
        save(tmp_path / "a", model, guide)
    assert not (tmp_path / "a").exists()


def test_save_overwrites_adapters_and_spares_everything_else(tmp_path: Path) -> None:
    model, guide = pair()
    (tmp_path / "file").write_text("x")
    with refuses(AdapterFileError, str(tmp_path / "file")):
        save(tmp_path / "file", model, guide)
    for name, text in (("thesis.tex", "x"), ("adapter.json", '{"someone": "else"}')):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        with refuses(AdapterFileError, str(folder), name):
            save(folder, model, guide)
        assert [(p.name, p.read_text()) for p in folder.iterdir()] == [(name, text)]
    folder = tmp_path / "old"
    save(folder, model, guide)
    (folder / "notes.txt").write_text("keep me")
    scramble(model, guide, seed=9)
    save(folder, model, guide)
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors", "notes.txt"]
    check = load(folder, bert())[0]
    assert torch.equal(check.head.weight, model.head.weight)


def test_a_failed_write_leaves_the_old_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide = pair()
    save(tmp_path, model, guide)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    scramble(model, guide, seed=9)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayes_adapters.files._folder.os.fsync", full)
    with refuses(AdapterFileError, str(tmp_path), "No space left on device"):
        save(tmp_path, model, guide)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
