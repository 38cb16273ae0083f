"""Heads that are more than one linear layer: from PEFT's folders, in use, saved, exported, and back to PEFT."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayes_adapters import Batch, Categorical, Tagging, adapted_layers, load, predict, save
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.heads import TransformersHead
from bayes_adapters.models import LoRA
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.training_free import bayesianise
from tests.files.peft.parts import peft, trained
from tests.helpers import bert, token_batch
from tests.refusals import refuses, warns

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
TOKENS = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PLACES = {"max_position_embeddings": 40}
DISTIL: dict[str, Any] = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24}
BART: dict[str, Any] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 2}
XLNET: dict[str, Any] = {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24}
MODERN = SIZES | {"cls_token_id": 1, "sep_token_id": 2}
CASES: dict[str, tuple[dict[str, Any], list[str], list[str] | None]] = {
    "Roberta": (SIZES | PLACES, ["query"], None),
    "XLMRoberta": (SIZES | PLACES, ["query"], None),
    "Electra": (SIZES | PLACES | {"embedding_size": 16}, ["query"], None),
    "DistilBert": (DISTIL | PLACES, ["q_lin"], None),
    "DebertaV2": (SIZES | PLACES, ["query_proj"], ["pooler", "classifier"]),
    "ModernBert": (MODERN | PLACES, ["Wqkv"], ["head", "classifier"]),
    "MPNet": (SIZES | PLACES, ["q"], None),
    "Bart": (BART | PLACES, ["q_proj"], ["classification_head"]),
    "XLNet": (XLNET, ["layer_1"], ["sequence_summary", "logits_proj"]),
}
"""Architecture → its sizes, the layers that are adapted, and the modules of its head where PEFT must be told."""


def config(kind: str) -> Any:
    return getattr(transformers, f"{kind}Config")(**CASES[kind][0], **TOKENS, num_labels=3)


def plain(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return transformers.AutoModel.from_config(config(kind)).eval()


def whole(kind: str, task: str) -> nn.Module:
    """The task model on the weights of ``plain``; its head is another one at every call."""
    name = {"SEQ_CLS": "AutoModelForSequenceClassification", "TOKEN_CLS": "AutoModelForTokenClassification"}[task]
    net = getattr(transformers, name).from_config(config(kind)).eval()
    base = plain(kind).state_dict()
    net.base_model.load_state_dict({k: v for k, v in base.items() if k in net.base_model.state_dict()})
    return net


def by_peft(kind: str, folder: Path, task: str = "SEQ_CLS", **options: Any) -> nn.Module:
    _, targets, parts = CASES[kind]
    settings = {"r": 3, "lora_alpha": 5, "target_modules": targets, "modules_to_save": parts, "task_type": task}
    theirs = trained(whole(kind, task), peft.LoraConfig(**settings | options))
    theirs.save_pretrained(folder)
    return theirs


def texts() -> Batch:
    """Padded on the right, with one end-of-sentence token in each text, which is where BART's head reads."""
    inputs = token_batch().inputs
    mask = inputs["attention_mask"]
    ids = inputs["input_ids"].clamp_min(3).masked_fill(mask == 0, 0)
    ids[torch.arange(len(ids)), mask.sum(1) - 1] = 2
    return Batch({"input_ids": ids, "attention_mask": mask})


def probabilities(net: nn.Module) -> Tensor:
    with torch.no_grad():
        return net(**texts().inputs).logits.softmax(-1)


def from_theirs(folder: Path, kind: str, likelihood: Any = None) -> LoRA:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return from_peft(folder, plain(kind), likelihood or Categorical(3))


def around(model: LoRA) -> Any:
    """A posterior around the model; a tiny one tolerates any noise, and a warning says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bayesianise(model, Delta(model), texts(), tolerance=10.0, iterations=1, num_samples=2)


@pytest.mark.parametrize("kind", CASES)
def test_a_head_with_layers_of_its_own_comes_along(kind: str, tmp_path: Path) -> None:
    theirs = by_peft(kind, tmp_path / "theirs")
    model = from_theirs(tmp_path / "theirs", kind)
    assert isinstance(model.head, TransformersHead)
    expected = probabilities(theirs)
    assert (expected - expected[0]).abs().max() > 1e-3
    found = predict(model, Delta(model), texts()).probs
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)

    save(tmp_path / "ours", model, Delta(model))
    again, guide = load(tmp_path / "ours", plain(kind))
    assert torch.equal(predict(again, guide, texts()).probs, found)

    to_peft(tmp_path / "back", again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        back = peft.PeftModel.from_pretrained(whole(kind, "SEQ_CLS"), tmp_path / "back").eval()
    torch.testing.assert_close(probabilities(back), expected, rtol=0, atol=1e-6)
    names = (load_file(tmp_path / name / "adapter_model.safetensors").keys() for name in ("back", "theirs"))
    assert next(names) == next(names)


@pytest.mark.parametrize("kind", ["ModernBert", "Roberta"])
def test_a_head_of_token_classification_comes_along(kind: str, tmp_path: Path) -> None:
    theirs = by_peft(kind, tmp_path, "TOKEN_CLS")
    model = from_theirs(tmp_path, kind, Tagging(3))
    assert isinstance(model.head, TransformersHead) == (kind == "ModernBert"), "RoBERTa's is one linear layer"
    real = texts().token_mask
    found = predict(model, Delta(model), texts()).probs[real]
    torch.testing.assert_close(found, probabilities(theirs)[real], rtol=0, atol=1e-6)


def test_part_of_a_head_is_left_behind_and_named(tmp_path: Path) -> None:
    """PEFT saves the last layer by itself; the one before it is then anybody's guess, per token too."""
    by_peft("DebertaV2", tmp_path / "examples", modules_to_save=None)
    backbone = plain("DebertaV2")
    with refuses(ConfigError, "head=True", "pooler", "modules_to_save=['pooler', 'classifier']"):
        from_peft(tmp_path / "examples", backbone, Categorical(2), head=True)
    assert not adapted_layers(backbone)
    with warns(UserWarning, "PEFT has not saved pooler", "modules_to_save=['pooler', 'classifier']"):
        model = from_peft(tmp_path / "examples", backbone, Categorical(3))
    with refuses(ConfigError, "head"):
        bayesianise(model, Delta(model), texts())
    by_peft("ModernBert", tmp_path / "tokens", "TOKEN_CLS", modules_to_save=None)
    with warns(UserWarning, "PEFT has not saved head", "modules_to_save=['head', 'classifier']"):
        from_peft(tmp_path / "tokens", plain("ModernBert"), Tagging(3))


def test_a_head_for_another_number_of_classes_is_left_behind(tmp_path: Path) -> None:
    by_peft("Roberta", tmp_path)
    with warns(UserWarning, "classifier.out_proj.weight (3, 16)"):
        from_peft(tmp_path, plain("Roberta"), Categorical(4))


def test_the_head_goes_through_calibration_and_exporting(tmp_path: Path) -> None:
    by_peft("Roberta", tmp_path)
    model = from_theirs(tmp_path, "Roberta")
    before = predict(model, Delta(model), texts()).probs
    random, guide, _ = around(model)
    mean = predict(random, guide, texts(), mean_only=True).probs
    torch.testing.assert_close(mean, before, rtol=0, atol=1e-6)
    lora = to_lora(random, guide, plain("Roberta"))
    assert isinstance(lora.head, TransformersHead)
    torch.testing.assert_close(predict(lora, Delta(lora), texts()).probs, before, rtol=0, atol=1e-6)
    save(tmp_path / "ours", random, guide)
    again, loaded = load(tmp_path / "ours", plain("Roberta"))
    draws = [predict(m, g, texts(), num_samples=3).probs for m, g in ((random, guide), (again, loaded))]
    assert torch.equal(*draws)


def test_draws_share_a_pass(tmp_path: Path) -> None:
    """BART reads ids of every row: several draws of an example are rows too."""
    by_peft("Bart", tmp_path)
    model = from_theirs(tmp_path, "Bart")
    random, guide, _ = around(model)
    together, alone = (predict(random, guide, texts(), num_samples=4, chunk_size=n).probs for n in (4, 1))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_a_batch_that_the_head_cannot_read() -> None:
    net = plain("Bart")
    model = LoRA(net, Categorical(3), targets=["q_proj"], head=TransformersHead("SEQ_CLS", net.config))
    batch = texts()
    batch.inputs["input_ids"][0] = 5
    with refuses(DataError, "BartForSequenceClassification", "classification_head", "input_ids"):
        predict(model, Delta(model), batch)


def test_a_fresh_one_trains_and_goes_to_peft_under_its_own_prefix(tmp_path: Path) -> None:
    net = plain("Roberta")
    model = LoRA(net, Categorical(3), targets=["query"], rank=2, head=TransformersHead("SEQ_CLS", net.config))
    model(Batch(texts().inputs, torch.tensor([0, 1, 2, 0, 1]))).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.head.parameters())
    to_peft(tmp_path, model)
    back = peft.PeftModel.from_pretrained(whole("Roberta", "SEQ_CLS"), tmp_path).eval()
    found = predict(model, Delta(model), texts()).probs
    torch.testing.assert_close(probabilities(back), found, rtol=0, atol=1e-6)
    with warns(UserWarning, "TransformersHead", "'roberta.'", "''"):
        to_peft(tmp_path, model, prefix="")
    assert not [name for name in load_file(tmp_path / "adapter_model.safetensors") if "classifier" in name]


def test_a_backbone_in_half_precision_has_a_head_in_single(tmp_path: Path) -> None:
    by_peft("Roberta", tmp_path)
    wide = predict(model := from_theirs(tmp_path, "Roberta"), Delta(model), texts()).probs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        half = from_peft(tmp_path, plain("Roberta").bfloat16(), Categorical(3))
    torch.testing.assert_close(predict(half, Delta(half), texts()).probs, wide, rtol=0, atol=0.05)


def test_a_copy_is_independent(tmp_path: Path) -> None:
    by_peft("Roberta", tmp_path)
    model = from_theirs(tmp_path, "Roberta")
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.net.classifier.out_proj.bias.add_(1.0)
    assert not torch.equal(other.head.net.classifier.out_proj.bias, model.head.net.classifier.out_proj.bias)


def test_tensors_of_another_head_are_none_of_it(tmp_path: Path) -> None:
    by_peft("Roberta", tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.classifier.extra.weight": torch.zeros(3, 3)}, path)
    with warns(UserWarning, "classifier.extra.weight (3, 3)"):
        from_peft(tmp_path, plain("Roberta"), Categorical(3))


def test_what_is_no_head_of_transformers_is_refused() -> None:
    net = bert()
    with refuses(ConfigError, "SEQ_CLASS", "SEQ_CLS", "TOKEN_CLS"):
        TransformersHead("SEQ_CLASS", net.config)
    with refuses(ConfigError, "SEQ_CLS", "a list"):
        TransformersHead("SEQ_CLS", [])
    with refuses(ConfigError, "'bart'", "AutoModelForTokenClassification"):
        LoRA(plain("Bart"), Tagging(3), targets=["q_proj"], head=TransformersHead("TOKEN_CLS", config("Bart")))
    with refuses(ConfigError, "Tagging", "TransformersHead"):
        LoRA(net, Tagging(3), head=TransformersHead("SEQ_CLS", net.config))
    wide = transformers.RobertaConfig(**SIZES | {"hidden_size": 32})
    with refuses(ConfigError, "'roberta'", 32, 16):
        LoRA(net, Categorical(3), head=TransformersHead("SEQ_CLS", wide))
    with refuses(ConfigError, "no_such_model"):
        TransformersHead("SEQ_CLS", {"model_type": "no_such_model"})
