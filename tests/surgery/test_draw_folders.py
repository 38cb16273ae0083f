"""Draws of every posterior over weights as LoRA folders: PEFT computes with each what predict computed with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification, RobertaModel

from bayes_adapters import AdapterGuide, AdapterModel, Bernoulli, Categorical, predict, registry
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files.peft import from_peft
from bayes_adapters.guides import CrossAttention, Delta, MeanField
from bayes_adapters.heads import BayesianLinear, JointLinear, TransformersHead, TwoLayerHead
from bayes_adapters.models import AdapterDropout, ConcatLoRA, LoRA, StochasticCore, StochasticDown, Wander
from bayes_adapters.sites import Granularity
from bayes_adapters.surgery.draw_folders import draws_to_peft
from bayes_adapters.systems import SYSTEMS, build
from tests.files.peft.parts import peft
from tests.helpers import CONTEXT, bert, core_model, fill_B, token_batch
from tests.refusals import refuses, warns

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

STRUCTURES = ("stochastic_core", "stochastic_down", "stochastic_factors", "diagonal_core", "lora_xs", "polar")
"""Structures whose random parts are weights; the first one is tried with every guide that serves it."""
OTHERS = {"mc_dropout": "adapter_dropout", "rank_gates": "gated_lora", "rank_wise": "stochastic_factors"}
"""Guides of other structures."""
SIZES: dict[str, dict[str, Any]] = {"stored_draws": {"num_draws": 3}, "swag": {"columns": 3}}
OF_WEIGHTS = sorted(
    name
    for name in registry.names("guide")
    if Granularity.GLOBAL in registry.find("guide", name).serves and name != "delta"
    if registry.find("guide", name).__module__.startswith("bayes_adapters.")
)
CASES = [(guide, OTHERS.get(guide, STRUCTURES[0])) for guide in OF_WEIGHTS if guide != "training_free"]
CASES += [("mean_field", structure) for structure in STRUCTURES[1:]] + [("training_free", "stochastic_down")]


def pair(guide: str, structure: str) -> tuple[AdapterModel, AdapterGuide]:
    cls = registry.find("model", structure)
    options: dict[str, Any] = {} if structure == "gated_lora" else {"rank": 2}
    if structure in ("stochastic_core", "adapter_dropout"):
        options["granularity"] = "global"
    if structure != "adapter_dropout":
        options["num_data"] = 20
    model: AdapterModel = cls(bert(layers=1), Categorical(3), **options)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(0.0, 0.4)
    made: AdapterGuide = registry.find("guide", guide)(model, **SIZES.get(guide, {}))
    scattered(made)
    return model, made


@torch.no_grad()
def scattered(guide: AdapterGuide) -> None:
    """Where a guide starts as a point, give its draws something to differ in."""
    for name, value in [*guide.named_parameters(), *guide.named_buffers()]:
        if value.is_floating_point() and value.dim() > 1:
            value.add_(0.3 * torch.rand_like(value) if "loc" not in name else 0.3 * torch.randn_like(value))


def states(net: nn.Module) -> Tensor:
    batch = token_batch()
    with torch.no_grad():
        return net(**batch.inputs).last_hidden_state


def answers(net: nn.Module, folder: Path) -> Tensor:
    """Class probabilities of PEFT's model with the linear head that lies beside it, which reads the mean."""
    head = load_file(folder / "bayes_adapters_head.safetensors")
    mask = token_batch().token_mask[..., None].float()
    pooled = (states(net) * mask).sum(1) / mask.sum(1)
    return (pooled @ head["weight"].T + head["bias"]).softmax(-1)


@pytest.mark.parametrize(("guide", "structure"), CASES)
def test_peft_answers_with_a_draw_what_predict_did(guide: str, structure: str, tmp_path: Path) -> None:
    model, made = pair(guide, structure)
    samples = predict(model, made, token_batch().without_targets(), num_samples=3, return_samples=True, seed=4).samples
    assert (samples[2] - samples[0]).abs().max() > 1e-4, "the draws differ"
    folders = draws_to_peft(tmp_path / "draws", model, made, num_samples=3, seed=4)
    theirs = peft.PeftModel.from_pretrained(bert(layers=1), folders[2]).eval()
    torch.testing.assert_close(answers(theirs, folders[2]), samples[2], rtol=0, atol=1e-5)


def test_every_guide_is_tried_or_draws_locally() -> None:
    ours = {n for n in registry.names("guide") if registry.find("guide", n).__module__.startswith("bayes_adapters.")}
    local = {n for n in ours if Granularity.GLOBAL not in registry.find("guide", n).serves}
    assert {guide for guide, _ in CASES} | local | {"delta"} == ours


SERVED = {"blob", "scalabl", "bayeslora-2026"}
REFUSED = {  # what the error names
    "lora": "Delta",
    "polar-vbll": "VariationalLastLayer",
    "lora-fusion": "FusionLoRA",
}


@pytest.mark.parametrize("name", [n for n, s in SYSTEMS.items() if not issubclass(s.model, ConcatLoRA | Wander)])
def test_systems(name: str, tmp_path: Path) -> None:
    """Every system of one backbone writes its draws, or says what stands in the way."""
    accepted = [option for own in SYSTEMS[name].options().values() for option in own]
    options = {"context_dim": CONTEXT} if "context_dim" in accepted else {}
    torch.manual_seed(0)
    model, guide = build(name, bert(layers=1), Categorical(3), num_data=20, rank=2, **options)
    if name not in SERVED:
        with refuses(ConfigError, REFUSED.get(name, type(guide).__name__)):
            draws_to_peft(tmp_path / "draws", model, guide, num_samples=1)
        assert not (tmp_path / "draws").exists()
        return
    with torch.no_grad():
        for own in (value for key, value in model.named_parameters() if "lora_B" in key):
            own.normal_(0.0, 0.4)
    (folder,) = draws_to_peft(tmp_path / "draws", model, guide, num_samples=1, seed=5)
    samples = predict(model, guide, token_batch().without_targets(), num_samples=1, return_samples=True, seed=5).samples
    theirs = peft.PeftModel.from_pretrained(bert(layers=1), folder).eval()
    torch.testing.assert_close(answers(theirs, folder), samples[0], rtol=0, atol=1e-5)


def test_local_posteriors_say_why(tmp_path: Path) -> None:
    listening = core_model("token")
    with refuses(ConfigError, "CrossAttention", listening.sites[0].name, "token", "predict", "'blob'"):
        draws_to_peft(tmp_path / "a", listening, CrossAttention(listening, context_dim=CONTEXT, dim=4))
    masked = AdapterDropout(bert(layers=1), Bernoulli(), granularity="sequence", rank=2)
    with refuses(ConfigError, "MCDropout", "sequence", "granularity='global'"):
        draws_to_peft(tmp_path / "a", masked, registry.find("guide", "mc_dropout")(masked))
    assert not (tmp_path / "a").exists()


def test_what_else_is_refused(tmp_path: Path) -> None:
    plain = LoRA(bert(layers=1), Bernoulli(), rank=2)
    with refuses(ConfigError, "Delta", "to_peft(folder, model)"):
        draws_to_peft(tmp_path / "a", plain, Delta(plain))
    model, guide = pair("mean_field", "stochastic_down")
    with refuses(ConfigError, "num_samples", 0):
        draws_to_peft(tmp_path / "a", model, guide, num_samples=0)
    (tmp_path / "mine.txt").write_text("mine")
    with refuses(AdapterFileError, str(tmp_path), "mine.txt"):
        draws_to_peft(tmp_path, model, guide)


@pytest.mark.parametrize("head", [BayesianLinear, JointLinear])
def test_a_random_head_is_drawn_along(head: Any, tmp_path: Path) -> None:
    model = fill_B(StochasticDown(bert(), Categorical(3), rank=2, num_data=20, head=head()))
    guide = MeanField(model, init_scale=0.3)
    samples = predict(model, guide, token_batch().without_targets(), num_samples=2, return_samples=True).samples
    for folder, expected in zip(draws_to_peft(tmp_path, model, guide, num_samples=2), samples, strict=True):
        theirs = peft.PeftModel.from_pretrained(bert(), folder).eval()
        torch.testing.assert_close(answers(theirs, folder), expected, rtol=0, atol=1e-5)


def test_a_task_models_head_is_in_every_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(**tiny, intermediate_size=24, pad_token_id=0, num_labels=3)
    base = RobertaModel(config, add_pooling_layer=False).eval()
    task = RobertaForSequenceClassification(config).eval()
    task.roberta.load_state_dict(base.state_dict())
    model = fill_B(
        StochasticDown(base, Categorical(3), rank=2, num_data=9, head=TransformersHead("SEQ_CLS", config))
    ).eval()
    guide = MeanField(model, init_scale=0.3)
    batch = token_batch().without_targets()
    samples = predict(model, guide, batch, num_samples=2, return_samples=True).samples
    names = [folder.name for folder in draws_to_peft(tmp_path, model, guide, num_samples=2)]
    net = peft.PeftModel.from_pretrained(task, tmp_path / names[0], adapter_name=names[0])
    net.load_adapter(tmp_path / names[1], names[1])
    for name, expected in zip(names, samples, strict=True):
        net.eval().set_adapter(name)
        with torch.no_grad():
            found = net(**batch.inputs).logits.softmax(-1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert "modules_to_save" in (tmp_path / "README.md").read_text()


def test_a_linear_head_that_is_the_task_models_is_inside(tmp_path: Path) -> None:
    model = fill_B(StochasticDown(bert(), Categorical(3), rank=2, num_data=20, pooling="pooler"))
    guide = MeanField(model, init_scale=0.3)
    batch = token_batch().without_targets()
    config = bert().config
    config.num_labels = 3
    task = BertForSequenceClassification(config).eval()
    task.bert.load_state_dict(bert().state_dict())
    expected = predict(model, guide, batch, num_samples=1, return_samples=True).samples[0]
    (folder,) = draws_to_peft(tmp_path, model, guide, num_samples=1, into=task)
    net = peft.PeftModel.from_pretrained(task, folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(**batch.inputs).logits.softmax(-1), expected, rtol=0, atol=1e-5)
    again = from_peft(folder, bert(), Categorical(3))
    torch.testing.assert_close(predict(again, Delta(again), batch).probs, expected, rtol=0, atol=1e-5)


def test_the_card_says_how_to_serve_and_average(tmp_path: Path) -> None:
    model, guide = pair("mean_field", "stochastic_core")
    guide.posterior_temperature = 0.5
    model.backbone.config._name_or_path = "some-lab/tiny-bert"
    draws_to_peft(tmp_path, model, guide, num_samples=2, seed=3)
    text = (tmp_path / "README.md").read_text()
    for fact in ("`mean_field`", "temperature 0.5", "seed 3", "some-lab/tiny-bert", "vllm serve", "probabilities"):
        assert fact in text, fact
    assert json.loads((tmp_path / "draw-01/adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "pooler"])
def test_the_cards_recipe_is_the_prediction(pooling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fill_B(StochasticDown(bert(layers=1), Categorical(3), rank=2, num_data=20, pooling=pooling))
    guide = MeanField(model, init_scale=0.3)
    batch = token_batch().without_targets()
    draws_to_peft(tmp_path, model, guide, num_samples=3)
    monkeypatch.chdir(tmp_path)
    names = {"base": bert(layers=1), "inputs": batch.inputs}
    exec((tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0], names)
    torch.testing.assert_close(names["probs"], predict(model, guide, batch, num_samples=3).probs, rtol=0, atol=1e-5)


def test_another_head_is_left_out_with_a_warning(tmp_path: Path) -> None:
    prior = dist.Normal(0.0, 0.2)
    model = StochasticCore(
        bert(layers=1), Categorical(3), granularity="global", prior=prior, rank=2, num_data=9, head=TwoLayerHead(4)
    )
    with warns(UserWarning, "TwoLayerHead", "bayes_adapters.save"):
        draws_to_peft(tmp_path, model, MeanField(model), num_samples=1)
    assert "in no folder: a TwoLayerHead" in (tmp_path / "README.md").read_text()


def test_a_folder_of_a_call_that_was_stopped_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is written last."""
    model, made = pair("mean_field", "stochastic_core")

    def stopped(*_: Any) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("bayes_adapters.surgery.draw_folders.card", stopped)
        with pytest.raises(KeyboardInterrupt):
            draws_to_peft(tmp_path / "draws", model, made, num_samples=2)
    with refuses(AdapterFileError, str(tmp_path / "draws"), "2 draws", "README.md", "stopped"):
        draws_to_peft(tmp_path / "draws", model, made, num_samples=2)
    draws_to_peft(tmp_path / "whole", model, made, num_samples=2)
    with refuses(AdapterFileError, str(tmp_path / "whole"), "not empty"):
        draws_to_peft(tmp_path / "whole", model, made, num_samples=2)
