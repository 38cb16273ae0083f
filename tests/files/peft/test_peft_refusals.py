"""PEFT folders that are refused, with the backbone as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import Bernoulli, adapted_layers, select
from bayes_adapters.errors import AdapterFileError, ConfigError, TargetError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.models import LoRA, StochasticDown
from tests.files.peft.parts import adapters, edit, edit_tensors, hidden, peft, settings, trained
from tests.helpers import bert, gpt2
from tests.refusals import refuses

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


OPTIONS: dict[str, tuple[dict[str, Any], tuple[object, ...]]] = {
    "dora": ({"use_dora": True}, ("adapter_config.json", "use_dora=True")),
    "pissa": ({"init_lora_weights": "pissa"}, ("adapter_config.json", "init_lora_weights='pissa'")),
}


@pytest.mark.parametrize("case", list(OPTIONS))
def test_what_lora_cannot_express(case: str, tmp_path: Path) -> None:
    options, facts = OPTIONS[case]
    adapters(tmp_path, **options)
    backbone = bert()
    with refuses(AdapterFileError, *facts):
        from_peft(tmp_path, backbone, Bernoulli())
    assert not adapted_layers(backbone)


def test_a_pattern_of_equal_values_is_no_difference(tmp_path: Path) -> None:
    theirs = trained(bert(), settings("bert", rank_pattern={"query": 3}, alpha_pattern={"value": 5}))
    theirs.save_pretrained(tmp_path)
    model = from_peft(tmp_path, bert(), Bernoulli(), head=False)
    torch.testing.assert_close(hidden(model.backbone), hidden(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["AdaLoraConfig", "LoHaConfig", "IA3Config"])
def test_other_kinds(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"total_step": 10} if kind == "AdaLoraConfig" else {}
    options |= {"feedforward_modules": []} if kind == "IA3Config" else {}
    peft.get_peft_model(bert(), getattr(peft, kind)(target_modules=["query"], **options)).save_pretrained(tmp_path)
    with refuses(
        AdapterFileError, "adapter_config.json", "peft_type", repr(kind.removesuffix("Config").upper()), "LoRA"
    ):
        from_peft(tmp_path, bert(), Bernoulli())


def test_adapted_embeddings(tmp_path: Path) -> None:
    adapters(tmp_path, target_modules=["query", "word_embeddings"])
    with refuses(
        AdapterFileError,
        "adapter_model.safetensors",
        "'embeddings.word_embeddings.lora_embedding_A'",
        "lora_A.weight",
        "lora_B.weight",
    ):
        from_peft(tmp_path, bert(), Bernoulli())


def test_a_backbone_module_trained_along(tmp_path: Path) -> None:
    adapters(tmp_path, target_modules=["query"], modules_to_save=["LayerNorm"])
    with refuses(AdapterFileError, str(tmp_path), "'embeddings.LayerNorm.bias'", "write_backbone=True"):
        from_peft(tmp_path, bert(), Bernoulli())


def _drop(tensors: dict[str, Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


DAMAGE: dict[str, tuple[Callable[[Path], Any], tuple[object, ...]]] = {
    "no config": (
        lambda f: (f / "adapter_config.json").unlink(),
        ("adapter_config.json", "No such file or directory", "save_pretrained"),
    ),
    "config cut": (
        lambda f: (f / "adapter_config.json").write_text('{"peft'),
        ("adapter_config.json", "JSON", "line 1 column 2"),
    ),
    "rank 0": (lambda f: edit(f, r=0), ("adapter_config.json", "r='0'", "r ≥ 1")),
    "pattern a list": (
        lambda f: edit(f, rank_pattern=["query"]),
        ("adapter_config.json", "rank_pattern", ["query"], "a list"),
    ),
    "alpha text": (lambda f: edit(f, lora_alpha="five"), ("adapter_config.json", "lora_alpha='five'", "a str")),
    "unknown option": (lambda f: edit(f, use_quantum=True), ("adapter_config.json", "use_quantum=True")),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        ("adapter_model.safetensors", "save_pretrained"),
    ),
    "cut off": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"12345"),
        ("adapter_model.safetensors", "safetensors file"),
    ),
    "half a pair": (
        lambda f: edit_tensors(f, _drop),
        ("adapter_model.safetensors", "'encoder.layer.0.attention.output.dense'", "lora_B.weight"),
    ),
    "another rank": (
        lambda f: edit(f, r=2),
        ("'encoder.layer.0.attention.output.dense'", "rank 2", (2, 16), (16, 2), (3, 16), (16, 3)),
    ),
}


@pytest.mark.parametrize("case", list(DAMAGE))
def test_damaged_folders(case: str, tmp_path: Path) -> None:
    damage, facts = DAMAGE[case]
    damage(adapters(tmp_path))
    backbone = bert()
    with refuses(AdapterFileError, *facts):
        from_peft(tmp_path, backbone, Bernoulli())
    assert not adapted_layers(backbone)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    adapters(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with refuses(
        AdapterFileError, str(tmp_path / "adapter_model.safetensors"), "adapter_model.bin", "safe_serialization=True"
    ):
        from_peft(tmp_path, bert(), Bernoulli())


def test_another_backbone(tmp_path: Path) -> None:
    adapters(tmp_path)
    with refuses(
        AdapterFileError,
        "11 of 11",
        str(tmp_path),
        "GPT2Model",
        "'encoder.layer.0.attention.output.dense'",
        "'h.0.attn.c_attn'",
    ):
        from_peft(tmp_path, gpt2(), Bernoulli())
    with refuses(AdapterFileError, "5 of 11", str(tmp_path), "BertModel", "'encoder.layer.1.attention.output.dense'"):
        from_peft(tmp_path, bert(layers=1), Bernoulli())


def test_options_that_the_folder_says(tmp_path: Path) -> None:
    adapters(tmp_path)
    with refuses(ConfigError, "rank", "PEFT"):
        from_peft(tmp_path, bert(), Bernoulli(), rank=4)
    model = LoRA(bert(), Bernoulli())
    with refuses(ConfigError, "BertModel", "bayes_adapters.remove(backbone)"):
        from_peft(tmp_path, model.backbone, Bernoulli())
    assert from_peft(tmp_path, bert(), Bernoulli(), dropout=0.25, head=False).dropout == 0.25


def test_writing_refuses(tmp_path: Path) -> None:
    with refuses(ConfigError, "'A.global'", "LoRA", "bayes_adapters.save"):
        to_peft(tmp_path / "a", StochasticDown(bert(), Bernoulli(), num_data=5))
    assert not (tmp_path / "a").exists()
    (tmp_path / "note.txt").write_text("mine")
    with refuses(AdapterFileError, str(tmp_path), "note.txt", "adapter_config.json"):
        to_peft(tmp_path, LoRA(bert(), Bernoulli()))
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "file").write_text("")
    with refuses(AdapterFileError, str(tmp_path / "file"), "File exists"):
        to_peft(tmp_path / "file", LoRA(bert(), Bernoulli()))


def test_layers_that_peft_has_adapted_are_left_to_peft() -> None:
    net = peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query"]))
    found = select(net, "all-linear")
    assert len(found) == 2 * 5 + 1
    assert not [path for path in found if "query" in path or "lora" in path]
    with refuses(TargetError, "query'", "peft_model.merge_and_unload()", "bayes_adapters.files.peft.from_peft"):
        select(net, ["query"])
    with refuses(TargetError, "query'", "peft_model.merge_and_unload()", "bayes_adapters.files.peft.from_peft"):
        select(net, ["query", "value"])
