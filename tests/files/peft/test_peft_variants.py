"""LoRA of PEFT in all its variants that are linear in the adapter: what PEFT computes is what the import computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

from bayes_adapters import Bernoulli, load, remove, save
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import LoRA
from bayes_adapters.systems import start_from_peft
from tests.files.peft.parts import edit, edit_tensors, hidden, peft, settings, trained
from tests.helpers import bert, fill_B, llama, token_batch
from tests.refusals import refuses, warns

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*have invalid shape.*lora_B.bias"),  # a bias is no torn tensor
]

SCALES: dict[str, dict[str, Any]] = {
    "rank pattern": {"rank_pattern": {"query": 2}},
    "alpha pattern": {"alpha_pattern": {"query": 2, "layer.0.attention.self.value": 7}},
    "both, rsLoRA": {"rank_pattern": {"value": 1}, "alpha_pattern": {"query": 2}, "use_rslora": True},
}
BASE: dict[str, tuple[dict[str, Any], str]] = {
    "bias of adapted layers": ({"bias": "lora_only"}, "encoder.layer.0.attention.self.query.bias"),
    "all biases": ({"bias": "all"}, "encoder.layer.0.output.LayerNorm.bias"),
    "lora_bias": ({"lora_bias": True}, "encoder.layer.0.attention.self.query.bias"),
    "a module": ({"modules_to_save": ["LayerNorm"]}, "embeddings.LayerNorm.weight"),
    "rows of tokens": (
        {"trainable_token_indices": {"word_embeddings": [3, 5, 11]}},
        "embeddings.word_embeddings.weight",
    ),
}
_NO_MODULES = getattr(getattr(peft.utils, "error", None), "NoMatchingPeftModuleError", ValueError)
"""What PEFT raises where a folder's modules are not in the model: a ValueError, in newer versions one of its own."""


def theirs(folder: Path, **options: Any) -> Any:
    model = trained(bert(layers=1), settings("bert", **{"target_modules": ["query", "value"]} | options))
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", SCALES)
def test_layers_may_differ_in_their_scale(case: str, tmp_path: Path) -> None:
    expected = hidden(theirs(tmp_path / "theirs", **SCALES[case]))
    model = from_peft(tmp_path / "theirs", bert(layers=1), Bernoulli(), head=False)
    torch.testing.assert_close(hidden(model.backbone), expected, rtol=0, atol=1e-6)
    to_peft(tmp_path / "ours", model)
    again = peft.PeftModel.from_pretrained(bert(layers=1), tmp_path / "ours").eval()
    torch.testing.assert_close(hidden(again), expected, rtol=0, atol=1e-6)
    save(tmp_path / "saved", model, Delta(model))
    loaded, _ = load(tmp_path / "saved", bert(layers=1))
    assert torch.equal(hidden(loaded.backbone), hidden(model.backbone))


@pytest.mark.parametrize("case", BASE)
def test_weights_of_the_backbone_itself(case: str, tmp_path: Path) -> None:
    options, name = BASE[case]
    expected = hidden(theirs(tmp_path / "theirs", **options))
    backbone = bert(layers=1)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with refuses(AdapterFileError, str(tmp_path), "write_backbone=True", "bias", "modules_to_save"):
        from_peft(tmp_path / "theirs", backbone, Bernoulli(), head=False)
    with refuses(ConfigError, "dropout"):  # which is seen when the backbone was written
        from_peft(tmp_path / "theirs", backbone, Bernoulli(), head=False, write_backbone=True, dropout=2.0)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    model = from_peft(tmp_path / "theirs", backbone, Bernoulli(), head=False, write_backbone=True)
    torch.testing.assert_close(hidden(model.backbone), expected, rtol=0, atol=1e-6)
    changed = [key for key, value in before.items() if not torch.equal(_plain(backbone)[key], value)]
    assert name in changed
    assert not [key for key in changed if "query.weight" in key or "dense.weight" in key]
    with warns(UserWarning, "save_pretrained"):
        to_peft(tmp_path / "ours", model)
    save(tmp_path / "saved", model, Delta(model))
    with refuses(AdapterFileError, str(tmp_path / "saved"), "BertModel"):
        load(tmp_path / "saved", bert(layers=1))
    loaded, _ = load(tmp_path / "saved", remove(backbone))
    with warns(UserWarning, "save_pretrained"):
        to_peft(tmp_path / "ours", loaded)


def test_a_second_reading_does_not_shift_the_biases_again(tmp_path: Path) -> None:
    """It is refused, of a copy and in another dtype too; with the biases as they were it is a first one."""
    expected = hidden(theirs(tmp_path, lora_bias=True))
    backbone = bert(layers=1)
    before = copy.deepcopy(backbone.state_dict())

    def read(onto: Any, **options: Any) -> Any:
        return from_peft(tmp_path, onto, Bernoulli(), head=False, write_backbone=True, **options)

    for _ in range(2):
        with refuses(ConfigError, "dropout"):
            read(backbone, dropout=2.0)
        torch.testing.assert_close(hidden(read(backbone).backbone), expected, rtol=0, atol=1e-6)
        for again in (remove(backbone), copy.deepcopy(backbone), copy.deepcopy(backbone).bfloat16()):
            with refuses(ConfigError, ".attention.self.", "lora_bias=True"):
                read(again)
        backbone.load_state_dict(before)


def test_a_start_that_is_refused_leaves_the_backbone(tmp_path: Path) -> None:
    """A second try would add the biases once more."""
    theirs(tmp_path, lora_bias=True)
    backbone = bert(layers=1)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with refuses(ConfigError, "num_data"):
        start_from_peft("blob", tmp_path, backbone, Bernoulli(), head=False, write_backbone=True)
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert before.keys() == backbone.state_dict().keys()


def _plain(backbone: Any) -> dict[str, torch.Tensor]:
    return {key.replace(".base_layer.", "."): value for key, value in backbone.state_dict().items()}


def test_rows_that_do_not_fit(tmp_path: Path) -> None:
    theirs(tmp_path, trainable_token_indices={"word_embeddings": [3, 5]})
    for wrong in ({"word_embeddings": [3]}, {"word_embeddings": [3, 4000]}, None, {"other": [3, 5]}):
        edit(tmp_path, trainable_token_indices=wrong)
        with refuses(AdapterFileError, "embeddings.word_embeddings.weight", "trainable_token_indices"):
            from_peft(tmp_path, bert(layers=1), Bernoulli(), head=False, write_backbone=True)
    edit(tmp_path, trainable_token_indices={"word_embeddings": [3, 5]})

    def wider(tensors: dict[str, torch.Tensor]) -> None:
        name = next(name for name in tensors if "trainable_tokens_delta" in name)
        tensors[name] = torch.zeros(2, 5)

    with refuses(AdapterFileError, (2, 5), "embeddings.word_embeddings.weight"):
        edit_tensors(tmp_path, wider)
        from_peft(tmp_path, bert(layers=1), Bernoulli(), head=False, write_backbone=True)


@pytest.mark.parametrize("known", ["saved", "into"])
def test_a_backbone_out_of_a_language_model_goes_back_into_it(known: str, tmp_path: Path) -> None:
    """The checkpoint's config says which model it is of; from nothing that does, ``into=`` reads the paths."""
    torch.manual_seed(1)
    whole = LlamaForCausalLM(llama().config).eval()
    if known == "saved":
        whole.save_pretrained(tmp_path / "base")
        whole = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    batch = token_batch()
    model = fill_B(LoRA(whole.model, Bernoulli(), targets=["q_proj", "down_proj"], rank=2)).eval()
    with torch.no_grad():
        expected = whole(**batch.inputs).logits[batch.token_mask]
    to_peft(tmp_path / "ours", model, **({} if known == "saved" else {"into": whole}))
    if known == "saved":
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
        net = peft.PeftModel.from_pretrained(plain, tmp_path / "ours").eval()
        assert isinstance(net, peft.PeftModelForCausalLM)
    else:
        torch.manual_seed(1)
        net = peft.PeftModel.from_pretrained(LlamaForCausalLM(llama().config).eval(), tmp_path / "ours").eval()
    tensors = peft.utils.load_peft_weights(str(tmp_path / "ours"))
    result = peft.set_peft_model_state_dict(net, tensors)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    with torch.no_grad():
        torch.testing.assert_close(net(**batch.inputs).logits[batch.token_mask], expected, rtol=0, atol=1e-5)
    if known == "saved":
        with pytest.raises(_NO_MODULES):  # PEFT's, where it loaded nothing before
            peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "ours")
        to_peft(tmp_path / "plain", model, prefix="")
        with pytest.raises(_NO_MODULES):
            peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "plain")
        net = peft.PeftModel.from_pretrained(AutoModel.from_pretrained(tmp_path / "base"), tmp_path / "plain").eval()
        with torch.no_grad():
            found = net(**batch.inputs).last_hidden_state[batch.token_mask]
        torch.testing.assert_close(found, hidden(model.backbone), rtol=0, atol=1e-5)
