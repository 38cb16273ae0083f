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

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "use_dora=True"),
    "rank pattern": ({"rank_pattern": {"query": 2}}, "differ in their scale: 1.66667 for .* and 2.5 for .*query"),
    "alpha pattern": (
        {"alpha_pattern": {"query": 2}},
        "differ in their scale: 1.66667 for .* and 0.666667 for .*query",
    ),
    "bias": ({"bias": "lora_only"}, "bias='lora_only' trains biases"),
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' may have changed the base weights"),
}


@pytest.mark.parametrize("case", list(OPTIONS))
def test_what_lora_cannot_express(case: str, tmp_path: Path) -> None:
    options, message = OPTIONS[case]
    adapters(tmp_path, **options)
    backbone = bert()
    with pytest.raises(AdapterFileError, match=message):
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
    with pytest.raises(AdapterFileError, match=r"has the peft_type '(ADALORA|LOHA|IA3)'; these adapters are LoRA only"):
        from_peft(tmp_path, bert(), Bernoulli())


def test_adapted_embeddings(tmp_path: Path) -> None:
    adapters(tmp_path, target_modules=["query", "word_embeddings"])
    with pytest.raises(AdapterFileError, match=r"holds '.*lora_embedding_A'.*embeddings"):
        from_peft(tmp_path, bert(), Bernoulli())


def test_a_backbone_module_trained_along(tmp_path: Path) -> None:
    adapters(tmp_path, target_modules=["query"], modules_to_save=["LayerNorm"])
    with pytest.raises(AdapterFileError, match="trained weights of the backbone itself"):
        from_peft(tmp_path, bert(), Bernoulli())


def _drop(tensors: dict[str, Tensor]) -> None:
    del tensors[next(name for name in tensors if "lora_B" in name)]


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json' cannot be read"),
    "config cut": (lambda f: (f / "adapter_config.json").write_text('{"peft'), "is not JSON"),
    "rank 0": (lambda f: edit(f, r=0), "a whole r ≥ 1"),
    "pattern a list": (lambda f: edit(f, rank_pattern=["query"]), "rank_pattern=.*list; a dictionary"),
    "alpha text": (lambda f: edit(f, lora_alpha="five"), "lora_alpha='five'"),
    "lora bias": (lambda f: edit(f, lora_bias=True), "lora_bias=True"),
    "unknown option": (lambda f: edit(f, use_quantum=True), "use_quantum=True"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "does not exist. Give the folder"),
    "cut off": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"12345"), "cannot be read"),
    "half a pair": (lambda f: edit_tensors(f, _drop), "lacks A or B of"),
    "another rank": (lambda f: edit(f, r=2), "rank 2 and this backbone's layer need"),
}


@pytest.mark.parametrize("case", list(DAMAGE))
def test_damaged_folders(case: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[case]
    damage(adapters(tmp_path))
    backbone = bert()
    with pytest.raises(AdapterFileError, match=message):
        from_peft(tmp_path, backbone, Bernoulli())
    assert not adapted_layers(backbone)


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    adapters(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(AdapterFileError, match="is a pickle, which could run any code"):
        from_peft(tmp_path, bert(), Bernoulli())


def test_another_backbone(tmp_path: Path) -> None:
    adapters(tmp_path)
    with pytest.raises(AdapterFileError, match=r"adapted layers in .* are no linear layers of this GPT2Model"):
        from_peft(tmp_path, gpt2(), Bernoulli())
    with pytest.raises(AdapterFileError, match=r"of this BertModel, for example 'encoder.layer.1"):
        from_peft(tmp_path, bert(layers=1), Bernoulli())


def test_options_that_the_folder_says(tmp_path: Path) -> None:
    adapters(tmp_path)
    with pytest.raises(ConfigError, match=r"rank .* of a PEFT adapter are read from its folder"):
        from_peft(tmp_path, bert(), Bernoulli(), rank=4)
    model = LoRA(bert(), Bernoulli())
    with pytest.raises(ConfigError, match="already has adapters"):
        from_peft(tmp_path, model.backbone, Bernoulli())
    assert from_peft(tmp_path, bert(), Bernoulli(), dropout=0.25, head=False).dropout == 0.25


def test_writing_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'A.global' is random. Write the posterior mean"):
        to_peft(tmp_path / "a", StochasticDown(bert(), Bernoulli(), num_data=5))
    assert not (tmp_path / "a").exists()
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(AdapterFileError, match=r"is not empty .*note\.txt.* has no adapter_config\.json"):
        to_peft(tmp_path, LoRA(bert(), Bernoulli()))
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterFileError, match="Cannot write the adapter"):
        to_peft(tmp_path / "file", LoRA(bert(), Bernoulli()))


def test_layers_that_peft_has_adapted_are_left_to_peft() -> None:
    net = peft.get_peft_model(bert(), peft.LoraConfig(r=2, target_modules=["query"]))
    found = select(net, "all-linear")
    assert len(found) == 2 * 5 + 1
    assert not [path for path in found if "query" in path or "lora" in path]
    with pytest.raises(TargetError, match=r"already holds an adapter of PEFT.*merge_and_unload.*from_peft"):
        select(net, ["query"])
    with pytest.raises(TargetError, match="already holds an adapter of PEFT"):
        select(net, ["query", "value"])
