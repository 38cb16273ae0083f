"""PEFT's LoRA folders, read and written: the same hidden states as the real library's, both ways."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification, GPT2ForSequenceClassification

from bayes_adapters import Bernoulli, Categorical, adapted_layers, predict
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.guides import Delta
from bayes_adapters.models import FusionLoRA, LoRA, StochasticDown
from bayes_adapters.peft_files import HEAD, from_peft, to_peft
from tests.helpers import CONTEXT, bert, fill_B, gpt2, token_batch

peft = pytest.importorskip("peft")

TARGETS = {"bert": ["query", "value", "dense"], "gpt2": ["c_attn", "c_fc"]}
BACKBONES: dict[str, Callable[[], nn.Module]] = {"bert": bert, "gpt2": gpt2}
# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def settings(name: str, **options: Any) -> Any:
    return peft.LoraConfig(
        **{"r": 3, "lora_alpha": 5, "target_modules": TARGETS[name], "fan_in_fan_out": name == "gpt2"} | options
    )


def trained(backbone: nn.Module, config: Any) -> nn.Module:
    """A PEFT model whose A and B are random."""
    model = peft.get_peft_model(backbone, config).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.3)
    return model


def hidden(backbone: nn.Module) -> Tensor:
    """Last hidden states at the real tokens."""
    batch = token_batch()
    with torch.no_grad():
        states = backbone(**batch.inputs).last_hidden_state
    return states[batch.token_mask]


def adapters(folder: Path, name: str = "bert", **options: Any) -> Path:
    """A folder that PEFT wrote."""
    trained(BACKBONES[name](), settings(name, **options)).save_pretrained(folder)
    return folder


def edit(folder: Path, **changes: Any) -> Path:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


# the same function, both ways


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", list(BACKBONES))
def test_read_has_pefts_hidden_states(name: str, rslora: bool, tmp_path: Path) -> None:
    theirs = trained(BACKBONES[name](), settings(name, use_rslora=rslora))
    theirs.save_pretrained(tmp_path)
    backbone = BACKBONES[name]()
    plain = hidden(backbone)
    model = from_peft(tmp_path, backbone, Bernoulli())
    assert (hidden(theirs) - plain).abs().max() > 0.1, "the adapters change something"
    torch.testing.assert_close(hidden(model.backbone), hidden(theirs), rtol=0, atol=1e-6)
    assert not model.training
    assert model.rank == 3
    assert model.alpha == pytest.approx(5 * 3**0.5 if rslora else 5)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_peft_reads_what_is_written(name: str, tmp_path: Path) -> None:
    model = LoRA(BACKBONES[name](), Bernoulli(), targets=TARGETS[name], rank=3, alpha=7.5, dropout=0.1).eval()
    fill_B(model)
    to_peft(tmp_path, model)
    theirs = peft.PeftModel.from_pretrained(BACKBONES[name](), tmp_path).eval()
    torch.testing.assert_close(hidden(theirs), hidden(model.backbone), rtol=0, atol=1e-6)
    config = theirs.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 7.5, 0.1)
    assert config.fan_in_fan_out is (name == "gpt2")


def test_written_and_read_again(tmp_path: Path) -> None:
    model = fill_B(LoRA(bert(), Categorical(3), rank=3, pooling="cls", dropout=0.1))
    to_peft(tmp_path, model)
    again = from_peft(tmp_path, bert(), Categorical(3))
    assert again.config() == model.config()
    batch = token_batch().without_targets()
    found, expected = predict(again, Delta(again), batch), predict(model, Delta(model), batch)
    assert torch.equal(found.probs, expected.probs)
    assert from_peft(tmp_path, bert(), Categorical(3), pooling="mean").pooling.value == "mean"


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_that_differ_by_layer(rslora: bool, tmp_path: Path) -> None:
    """One scale for all: alpha goes with the rank, or with its root."""
    alphas = {"value": 5 * (1 / 3) ** (0.5 if rslora else 1)}
    theirs = trained(bert(), settings("bert", rank_pattern={"value": 1}, alpha_pattern=alphas, use_rslora=rslora))
    theirs.save_pretrained(tmp_path / "theirs")
    model = from_peft(tmp_path / "theirs", bert(), Bernoulli())
    assert {path.rsplit(".")[-1]: rank for path, rank in model.ranks.items()} == {"query": 3, "value": 1, "dense": 3}
    torch.testing.assert_close(hidden(model.backbone), hidden(theirs), rtol=0, atol=1e-6)
    to_peft(tmp_path / "ours", model)
    again = peft.PeftModel.from_pretrained(bert(), tmp_path / "ours").eval()
    torch.testing.assert_close(hidden(again), hidden(theirs), rtol=0, atol=1e-6)
    assert from_peft(tmp_path / "ours", bert(), Bernoulli()).config() == model.config()


def test_a_pruned_layer_is_left_out(tmp_path: Path) -> None:
    gone, short = "encoder.layer.0.attention.self.query", "encoder.layer.1.attention.self.value"
    model = fill_B(LoRA(bert(), Bernoulli(), rank=3, ranks={gone: 0, short: 2})).eval()
    to_peft(tmp_path, model)
    theirs = peft.PeftModel.from_pretrained(bert(), tmp_path).eval()
    torch.testing.assert_close(hidden(theirs), hidden(model.backbone), rtol=0, atol=1e-6)
    again = from_peft(tmp_path, bert(), Bernoulli())
    assert again.ranks == {path: rank for path, rank in model.ranks.items() if rank > 0}
    nothing = LoRA(bert(), Bernoulli(), rank=3, ranks=dict.fromkeys(model.layers, 0))
    with pytest.raises(ConfigError, match="no layer has a rank above 0"):
        to_peft(tmp_path / "nothing", nothing)


def test_a_layer_whose_path_ends_anothers(tmp_path: Path) -> None:
    """PEFT takes a list's entries for suffixes, so `proj` would reach `inner.proj` too."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = bert().config
            self.proj = nn.Linear(16, 16)
            self.inner = nn.ModuleDict({"proj": nn.Linear(16, 16)})

        def forward(self, x: Tensor) -> Tensor:
            return self.inner["proj"](self.proj(x))

    torch.manual_seed(5)
    model = fill_B(LoRA(Pair(), Bernoulli(), targets="proj", rank=2))
    to_peft(tmp_path, model)
    torch.manual_seed(5)
    theirs = peft.PeftModel.from_pretrained(Pair(), tmp_path)
    x = torch.randn(4, 16)
    torch.testing.assert_close(theirs(x), model.backbone(x), rtol=0, atol=1e-6)


def test_reading_and_writing_need_no_peft(tmp_path: Path) -> None:
    to_peft(tmp_path, LoRA(bert(), Bernoulli()))
    code = (
        "import sys; sys.modules['peft'] = None\n"
        "from transformers import BertConfig, BertModel\n"
        "from bayes_adapters import Bernoulli\n"
        "from bayes_adapters.peft_files import from_peft, to_peft\n"
        "backbone = BertModel(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,"
        " intermediate_size=24, max_position_embeddings=32))\n"
        f"to_peft({str(tmp_path / 'again')!r}, from_peft({str(tmp_path)!r}, backbone, Bernoulli()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "adapter_config.json").is_file()


# heads


def whole(kind: str) -> nn.Module:
    """A model with a head on the same tiny backbone."""
    torch.manual_seed(0)
    config = BACKBONES[kind]().config
    config.num_labels = 3
    config.pad_token_id = 0
    return (BertForSequenceClassification if kind == "bert" else GPT2ForSequenceClassification)(config).eval()


def test_a_score_head_is_taken_over_with_its_pooling(tmp_path: Path) -> None:
    theirs = trained(whole("gpt2"), settings("gpt2", task_type="SEQ_CLS"))
    theirs.save_pretrained(tmp_path)
    inner = theirs.get_base_model().transformer
    backbone = gpt2()
    own = {name.replace(".base_layer", ""): v for name, v in inner.state_dict().items() if "lora_" not in name}
    backbone.load_state_dict(own)
    model = from_peft(tmp_path, backbone, Categorical(3))
    assert model.pooling.value == "last"
    batch = token_batch().without_targets()
    ids = batch.inputs["input_ids"].clamp_min(1).masked_fill(batch.inputs["attention_mask"] == 0, 0)
    inputs = {"input_ids": ids, "attention_mask": batch.inputs["attention_mask"]}
    with torch.no_grad():
        logits = theirs(**inputs).logits
    found = predict(model, Delta(model), type(batch)(inputs)).probs
    torch.testing.assert_close(found, logits.softmax(-1), rtol=0, atol=1e-6)


def test_a_head_on_a_pooler_is_left_behind_and_said_so(tmp_path: Path) -> None:
    theirs = trained(whole("bert"), settings("bert", task_type="SEQ_CLS", target_modules=["query", "value"]))
    theirs.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"head in .*weight \(3, 16\).* was not taken"):
        model = from_peft(tmp_path, bert(), Categorical(3))
    assert model.pooling.value == "mean"
    taken = from_peft(tmp_path, bert(), Categorical(3), head=True, pooling="cls")
    weight = theirs.get_base_model().classifier.modules_to_save["default"].weight
    assert torch.equal(taken.head.weight, weight)
    assert not torch.equal(model.head.weight, weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.equal(from_peft(tmp_path, bert(), Categorical(3), head=False).head.weight, weight)
    backbone = bert()
    with pytest.raises(ConfigError, match=r"head=True, but .* no single linear head of shape \(1, 16\)"):
        from_peft(tmp_path, backbone, Bernoulli(), head=True)
    assert not adapted_layers(backbone)


def test_adapters_inside_a_model_with_a_head_find_the_plain_backbone(tmp_path: Path) -> None:
    theirs = trained(whole("bert"), settings("bert", target_modules=["query", "value"]))
    theirs.save_pretrained(tmp_path)
    names = load_file(tmp_path / "adapter_model.safetensors")
    assert all(name.startswith("base_model.model.bert.encoder.") for name in names)
    backbone = bert()
    inner = theirs.get_base_model().bert.state_dict()
    backbone.load_state_dict({n.replace(".base_layer", ""): v for n, v in inner.items() if "lora_" not in n})
    model = from_peft(tmp_path, backbone, Bernoulli())
    torch.testing.assert_close(hidden(model.backbone), hidden(theirs.get_base_model().bert), rtol=0, atol=1e-6)


# refused, with the backbone as it was


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
    model = from_peft(tmp_path, bert(), Bernoulli())
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
    "rank 0": (lambda f: edit(f, r=0), "a whole r ≥ 1 and a positive alpha"),
    "pattern a list": (lambda f: edit(f, rank_pattern=["query"]), "two dictionaries are needed"),
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
    with pytest.raises(ConfigError, match="rank of a PEFT adapter are read from its folder"):
        from_peft(tmp_path, bert(), Bernoulli(), rank=4)
    model = LoRA(bert(), Bernoulli())
    with pytest.raises(ConfigError, match="already has adapters"):
        from_peft(tmp_path, model.backbone, Bernoulli())
    assert from_peft(tmp_path, bert(), Bernoulli(), dropout=0.25).dropout == 0.25


def test_writing_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'A.global' is random. Write the posterior mean"):
        to_peft(tmp_path / "a", StochasticDown(bert(), Bernoulli(), num_data=5))
    assert not (tmp_path / "a").exists()
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(AdapterFileError, match=r"is not empty and has no adapter_config\.json"):
        to_peft(tmp_path, LoRA(bert(), Bernoulli()))
    assert [p.name for p in tmp_path.iterdir()] == ["note.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterFileError, match="Cannot write the adapter"):
        to_peft(tmp_path / "file", LoRA(bert(), Bernoulli()))


def test_a_head_that_is_not_linear_is_not_written(tmp_path: Path) -> None:
    to_peft(tmp_path, LoRA(bert(), Bernoulli()))
    assert (tmp_path / HEAD).is_file()
    with pytest.warns(UserWarning, match="The head is a Sequential, not one linear layer"):
        to_peft(tmp_path, FusionLoRA(bert(), Bernoulli(), context_dim=CONTEXT))
    assert not (tmp_path / HEAD).is_file(), "the head of the adapter there before must not stay"
    (tmp_path / HEAD).write_bytes((tmp_path / "adapter_model.safetensors").read_bytes())
    with pytest.raises(AdapterFileError, match="was not written by to_peft"):
        from_peft(tmp_path, bert(), Bernoulli())
