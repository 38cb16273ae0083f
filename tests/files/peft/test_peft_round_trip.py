"""PEFT's LoRA folders, read and written: the same hidden states as the real library's, both ways."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import Bernoulli, Categorical, predict
from bayes_adapters.errors import ConfigError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from bayes_adapters.models import ConcatLoRA, LoRA
from tests.files.peft.parts import BACKBONES, TARGETS, hidden, peft, settings, trained
from tests.helpers import bert, fill_B, token_batch
from tests.refusals import refuses
from tests.text_and_audio import encoders

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", list(BACKBONES))
def test_read_has_pefts_hidden_states(name: str, rslora: bool, tmp_path: Path) -> None:
    theirs = trained(BACKBONES[name](), settings(name, use_rslora=rslora))
    theirs.save_pretrained(tmp_path)
    backbone = BACKBONES[name]()
    plain = hidden(backbone)
    model = from_peft(tmp_path, backbone, Bernoulli(), head=False)
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
    model = from_peft(tmp_path / "theirs", bert(), Bernoulli(), head=False)
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
    with refuses(ConfigError, "rank", 0, "bayes_adapters.save"):
        to_peft(tmp_path / "nothing", nothing)


def test_several_encoders_are_no_backbone_of_peft(tmp_path: Path) -> None:
    model = ConcatLoRA(encoders(), Bernoulli(), rank=2)
    with refuses(ConfigError, "ConcatLoRA", "text, audio", "bayes_adapters.save"):
        to_peft(tmp_path / "a", model)
    assert not (tmp_path / "a").exists()


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
        "from bayes_adapters.files.peft import from_peft, to_peft\n"
        "backbone = BertModel(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,"
        " intermediate_size=24, max_position_embeddings=32))\n"
        f"to_peft({str(tmp_path / 'again')!r}, from_peft({str(tmp_path)!r}, backbone, Bernoulli()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "again" / "adapter_config.json").is_file()
