"""``bayes-adapters show``."""

from __future__ import annotations

from pathlib import Path

from bayes_adapters import Bernoulli, load, save
from bayes_adapters.backbones import text_backbone
from bayes_adapters.guides import Delta, Hypernetwork
from bayes_adapters.models import LoRA
from tests.cli.parts import Run, check_refusal, lines_joined
from tests.cola.parts import cola
from tests.helpers import bert


def test_show(home: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("show", home / "adapter")
    assert code == 0
    text = lines_joined(out)
    model, guide = load(home / "adapter", text_backbone(home / "text")[0])
    own = sum(p.numel() for p in model.trainable_parameters().values())
    for phrase in (
        "structure stochastic_core",
        "rank=2",
        "granularity=token",
        "guide cross_attention context_dim=16, dim=4",
        "prior Normal loc=0, scale=0.2 on 4 sites",
        "layers 4: encoder.layer.0.attention.self.query ...",
        f"{own:,} of the model, {sum(p.numel() for p in guide.parameters()):,} of the guide",
        "base BertModel",
        "torch=",
        "verify_prompts",
        "likelihood bernoulli",
    ):
        assert phrase in text, phrase
    plain_lora = LoRA(bert(), Bernoulli(), targets=["query"])
    save(tmp_path / "lora", plain_lora, Delta(plain_lora))
    text = lines_joined(run("show", tmp_path / "lora")[1])
    assert "the cores are fixed to I" in text
    assert "task none" in text
    check_refusal(run("show", tmp_path), "adapter.json", "does not exist")
    check_refusal(run("show", home / "nowhere"), "does not exist")


def test_show_of_several_encoders_leaves_their_blocks_out(run: Run, tmp_path: Path) -> None:
    model = cola()
    save(tmp_path, model, Hypernetwork(model))
    code, out, _ = run("show", tmp_path)
    assert code == 0
    assert "structure cola" in lines_joined(out)
    assert "blocks=" not in out
