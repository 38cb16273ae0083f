"""Configurations of others: patterns that would hang, numbers of another type, entries that change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bayes_adapters import Bernoulli, adapted_layers
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.models import LoRA
from tests.files.peft.parts import adapters, edit, edit_tensors, hidden, settings, trained
from tests.helpers import bert
from tests.refusals import refuses

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


HANG = ["(([a-z]|[a-z0-9.])+)+!", "(a|a|[a-z.])*!", "([a-z.]{1,60}){1,60}!", ".*" * 30 + "!"]


@pytest.mark.parametrize("pattern", HANG)
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_patterns_that_would_take_years(pattern: str, key: str, tmp_path: Path) -> None:
    edit(adapters(tmp_path), **{key: {pattern: 3}})
    from_peft(tmp_path, bert(), Bernoulli(), head=False)  # it matches nothing


@pytest.mark.parametrize("pattern", ["(", "*", "[", r"(.)\1", "(?P<x", "a++", "(?i:a)", "\\"])
def test_patterns_that_are_none(pattern: str, tmp_path: Path) -> None:
    edit(adapters(tmp_path), rank_pattern={pattern: 3})
    backbone = bert()
    with refuses(AdapterFileError, repr(pattern)):
        from_peft(tmp_path, backbone, Bernoulli())
    assert not adapted_layers(backbone)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_rslora": "false"},
        {"use_rslora": 1},
        {"lora_alpha": 10**400},
        {"lora_alpha": True},
        {"lora_alpha": "5"},
        {"lora_alpha": -5},
        {"lora_alpha": None},
        {"r": True},
        {"r": 3.5},
        {"r": "3"},
        {"r": 10**400},
        {"r": None},
        {"lora_dropout": 1.0},
        {"lora_dropout": "0"},
        {"lora_dropout": -0.1},
        {"rank_pattern": {"query": True}},
        {"rank_pattern": {"query": "3"}},
        {"rank_pattern": {"nowhere": 0}},
        {"rank_pattern": "query"},
        {"alpha_pattern": {"query": 10**400}},
        {"alpha_pattern": {"nowhere": None}},
        {"alpha_pattern": [["query", 5]]},
        {"task_type": 3},
    ],
)
def test_numbers_of_another_type(changes: dict[str, Any], tmp_path: Path) -> None:
    edit(adapters(tmp_path), **changes)
    backbone = bert()
    ((name, value),) = changes.items()
    with refuses(AdapterFileError, str(tmp_path / "adapter_config.json"), f"{name}={str(value)[:200]!r}"):
        from_peft(tmp_path, backbone, Bernoulli(), head=False)
    assert not adapted_layers(backbone)


def test_nan_is_no_number(tmp_path: Path) -> None:
    folder = adapters(tmp_path)
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 5', '"lora_alpha": NaN'))
    with refuses(AdapterFileError, str(tmp_path / "adapter_config.json"), "NaN"):
        from_peft(tmp_path, bert(), Bernoulli())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_factors_of_whole_numbers(dtype: torch.dtype, tmp_path: Path) -> None:
    def cast(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "query.lora_A" in name:
                tensors[name] = tensors[name].round().to(dtype)

    edit_tensors(adapters(tmp_path), cast)
    with refuses(AdapterFileError, str(tmp_path), "'encoder.layer.0.attention.self.query'", dtype):
        from_peft(tmp_path, bert(), Bernoulli())


@pytest.mark.parametrize(
    "entry",
    [
        {"lora_dtype": "float32"},
        {"merge_weights": True},
        {"transformers_version": "4.40.0"},
        {"_from_model_config": True},
        {"lorap_lr_ratio": 16.0},
        {"lorap_emb_lr": 1e-6},
    ],
)
def test_entries_that_change_no_number(entry: dict[str, Any], tmp_path: Path) -> None:
    theirs = trained(bert(), settings("bert"))
    theirs.save_pretrained(tmp_path)
    edit(tmp_path, **entry)
    model = from_peft(tmp_path, bert(), Bernoulli(), head=False)
    torch.testing.assert_close(hidden(model.backbone), hidden(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_pointer_of_git_lfs_is_called_one(part: str, tmp_path: Path) -> None:
    adapters(tmp_path)
    (tmp_path / part).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1234\n")
    with refuses(AdapterFileError, str(tmp_path / part), "git lfs pull"):
        from_peft(tmp_path, bert(), Bernoulli())


@pytest.mark.parametrize("part", ["adapter_config.json", "adapter_model.safetensors"])
def test_parts_that_are_no_files(part: str, tmp_path: Path) -> None:
    adapters(tmp_path)
    (tmp_path / part).unlink()
    (tmp_path / part).symlink_to("/dev/zero")
    with refuses(AdapterFileError, str(tmp_path / part), "device"):
        from_peft(tmp_path, bert(), Bernoulli())
    (tmp_path / part).unlink()
    with (tmp_path / part).open("wb") as file:
        file.truncate(2**36)
    with refuses(AdapterFileError, str(tmp_path / part), f"{2**36:,}"):
        from_peft(tmp_path, bert(), Bernoulli())


def test_a_list_that_asks_for_more_than_the_file_has(tmp_path: Path) -> None:
    """The shapes are compared with the backbone before a byte of the tensors is read."""
    path = adapters(tmp_path) / "adapter_model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    entries = json.loads(data[8 : 8 + length])
    name = max((n for n in entries if n != "__metadata__"), key=lambda n: entries[n]["data_offsets"][1])
    start = entries[name]["data_offsets"][0]
    entries[name] |= {"shape": [2**30, 16], "data_offsets": [start, start + 2**36]}
    head = json.dumps(entries).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + data[8 + length :])
    size, asked = path.stat().st_size, 8 + len(head) + start + 2**36
    with refuses(AdapterFileError, str(path), f"{size:,}", f"{asked:,}"):
        from_peft(tmp_path, bert(), Bernoulli())
    with path.open("r+b") as file:
        file.truncate(asked)
    with refuses(AdapterFileError, "'pooler.dense'", (2**30, 16), (16, 3)):
        from_peft(tmp_path, bert(), Bernoulli())


def test_another_scale_than_the_weights_were_written_with(tmp_path: Path) -> None:
    to_peft(tmp_path, LoRA(bert(), Bernoulli(), rank=2, alpha=4))
    edit(tmp_path, base_model_name_or_path="elsewhere", peft_version="9")
    from_peft(tmp_path, bert(), Bernoulli())
    edit(tmp_path, lora_alpha=8)
    with refuses(AdapterFileError, str(tmp_path / "adapter_config.json")):
        from_peft(tmp_path, bert(), Bernoulli())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})  # as PEFT writes it
    (tmp_path / "bayes_adapters_head.safetensors").unlink()
    assert from_peft(tmp_path, bert(), Bernoulli(), head=False).alpha == 8


def test_a_foreign_configuration_is_not_replaced(tmp_path: Path) -> None:
    for name, text in (
        ("adapter_config.json", '{"architecture": "pfeiffer"}'),
        ("adapter_model.safetensors", "somebody's"),
        ("bayes_adapters_head.safetensors", "somebody's"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        with refuses(AdapterFileError, str(folder), name):
            to_peft(folder, LoRA(bert(), Bernoulli()))
        assert [(p.name, p.read_text()) for p in folder.iterdir()] == [(name, text)]


def test_pefts_own_names_of_options_are_known(tmp_path: Path) -> None:
    adapters(tmp_path)
    for name in ("r", "lora_alpha", "lora_dropout", "target_modules"):
        with refuses(ConfigError, name):
            from_peft(tmp_path, bert(), Bernoulli(), **{name: 3})
