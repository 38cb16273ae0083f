"""One half of an encoder–decoder takes over its part of an adapter that PEFT trained on both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from bayes_adapters import Batch, Bernoulli, Categorical, adapted_layers, predict
from bayes_adapters.errors import AdapterFileError, ConfigError
from bayes_adapters.files.peft import from_peft, to_peft
from bayes_adapters.guides import Delta
from tests.files.peft.parts import adapters, peft, trained
from tests.helpers import bert, token_batch
from tests.refusals import refuses

# PEFT reads an attribute that this version of transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

SIZES = {"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2}
SIZES |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40}
TOKENS: dict[str, Any] = {"vocab_size": 40, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0}
T5 = T5Config(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, **TOKENS)
MODELS: dict[str, Callable[[], nn.Module]] = {
    "t5": lambda: T5ForConditionalGeneration(T5),
    "bart": lambda: BartForConditionalGeneration(BartConfig(**SIZES, **TOKENS)),
    "mbart": lambda: MBartForConditionalGeneration(MBartConfig(**SIZES, **TOKENS)),
    "marian": lambda: MarianMTModel(MarianConfig(**SIZES, **TOKENS)),
}
TARGETS = {"t5": ["q", "v", "wo"]}


def whole(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def of_both_halves(kind: str, folder: Path, **options: Any) -> nn.Module:
    """PEFT's model of encoder and decoder, with A and B of its own; saved to ``folder``."""
    names = TARGETS.get(kind, ["q_proj", "v_proj", "fc1"])
    settings = {"r": 3, "lora_alpha": 5, "target_modules": names, "task_type": "SEQ_2_SEQ_LM"} | options
    theirs = trained(whole(kind), peft.LoraConfig(**settings))
    theirs.save_pretrained(folder)
    return theirs


def states(encoder: nn.Module) -> Tensor:
    batch = token_batch()
    with torch.no_grad():
        return encoder(**batch.inputs).last_hidden_state[batch.token_mask]


@pytest.mark.parametrize("kind", MODELS)
def test_an_encoder_takes_over_its_half(kind: str, tmp_path: Path) -> None:
    theirs = of_both_halves(kind, tmp_path)
    model = from_peft(tmp_path, whole(kind).get_encoder(), Bernoulli(), head=False, leave_out="decoder")
    assert (states(model.backbone) - states(whole(kind).get_encoder())).abs().max() > 0.01
    expected = states(theirs.get_base_model().get_encoder())
    torch.testing.assert_close(states(model.backbone), expected, rtol=0, atol=1e-6)


def test_the_encoder_may_be_inside_a_model_of_its_own(tmp_path: Path) -> None:
    theirs = of_both_halves("t5", tmp_path, rank_pattern={"decoder.block.0.layer.0.SelfAttention.q": 2})
    backbone = T5EncoderModel(T5).eval()
    backbone.load_state_dict({k: v for k, v in whole("t5").state_dict().items() if k in backbone.state_dict()})
    model = from_peft(tmp_path, backbone, Bernoulli(), head=False, leave_out="decoder")
    assert list(adapted_layers(backbone)) == [p for p in model.layers if p.startswith("encoder.")]
    expected = states(theirs.get_base_model().get_encoder())
    torch.testing.assert_close(states(backbone), expected, rtol=0, atol=1e-6)


def test_a_decoder_takes_over_the_other_half(tmp_path: Path) -> None:
    theirs = of_both_halves("bart", tmp_path)
    model = from_peft(tmp_path, whole("bart").get_decoder(), Bernoulli(), head=False, leave_out="encoder")
    assert len(model.layers) == 10, "self-attention and cross-attention; encoder_attn is no encoder"
    batch = token_batch()
    seen = {"encoder_hidden_states": torch.randn(5, 4, 16, generator=torch.manual_seed(4)), "use_cache": False}
    with torch.no_grad():
        found, expected = (
            net(**batch.inputs, **seen).last_hidden_state
            for net in (model.backbone, theirs.get_base_model().get_decoder())
        )
    torch.testing.assert_close(found[batch.token_mask], expected[batch.token_mask], rtol=0, atol=1e-6)


def test_half_an_adapter_predicts_and_goes_back_to_peft(tmp_path: Path) -> None:
    theirs = of_both_halves("bart", tmp_path / "theirs")
    model = from_peft(tmp_path / "theirs", whole("bart").get_encoder(), Categorical(3), head=False, leave_out="decoder")
    batch = Batch(token_batch().inputs)
    assert predict(model, Delta(model), batch).probs.shape == (5, 3)
    to_peft(tmp_path / "ours", model)
    again = peft.PeftModel.from_pretrained(whole("bart"), tmp_path / "ours").eval()
    expected = states(theirs.get_base_model().get_encoder())
    torch.testing.assert_close(states(again.get_base_model().get_encoder()), expected, rtol=0, atol=1e-6)


def test_without_it_the_error_says_what_to_leave_out(tmp_path: Path) -> None:
    of_both_halves("bart", tmp_path)
    backbone = whole("bart").get_encoder()
    with refuses(AdapterFileError, str(tmp_path), "BartEncoder", "leave_out='decoder'"):
        from_peft(tmp_path, backbone, Bernoulli())
    assert not adapted_layers(backbone)


@pytest.mark.parametrize("name", ["dekoder", "code", "encoder_attn", "decoder.layers.7", ""])
def test_a_name_that_drops_nothing_is_refused(name: str, tmp_path: Path) -> None:
    of_both_halves("bart", tmp_path)
    with refuses(ConfigError, f"leave_out={name!r}", str(tmp_path), "drops 0 of the 16 adapted layers", "'decoder'"):
        from_peft(tmp_path, whole("bart").get_encoder(), Bernoulli(), leave_out=name)


def test_a_name_that_drops_everything_is_refused(tmp_path: Path) -> None:
    with refuses(ConfigError, "leave_out='encoder'", str(tmp_path), "drops 4 of the 4 adapted layers"):
        from_peft(adapters(tmp_path, target_modules=["query", "value"]), bert(), Bernoulli(), leave_out="encoder")
