"""Plain LoRA in every encoder, their outputs side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bayes_adapters import Batch, Bernoulli, adapted_layers, load, predict, save
from bayes_adapters.guides import Delta
from bayes_adapters.models import ConcatLoRA
from tests.helpers import WIDTH, logits
from tests.text_and_audio import batch, encoders


def test_concat_lora_adapts_every_encoder_and_concatenates() -> None:
    nets, data = encoders(), batch()
    model = ConcatLoRA(nets, Bernoulli(), rank=2, head_width=5)
    assert {p.split(".")[0] for p in model.layers} == {"text", "audio"}
    assert model.head.get_submodule("0").in_features == 2 * WIDTH
    guide = Delta(model)
    whole = logits(guide, data)
    half = logits(guide, Batch({k: v for k, v in data.inputs.items() if k.startswith("audio.")}))
    assert not torch.allclose(whole, half)
    predict(model, guide, data)


def test_concat_lora_survives_a_file(tmp_path: Path) -> None:
    model = ConcatLoRA(encoders(), Bernoulli(), rank=2, streams={"text": "cls", "audio": "mean"})
    guide = Delta(model)
    save(tmp_path / "a", model, guide)
    nets = encoders()
    loaded = load(tmp_path / "a", nets)
    assert torch.equal(logits(loaded[1], batch()), logits(guide, batch()))
    assert adapted_layers(nets)


def test_cls_is_the_first_real_position_of_texts_padded_on_the_left() -> None:
    """It was that of the padding, whose hidden states depend on no text."""
    model, data = ConcatLoRA(encoders(), Bernoulli(), rank=2, streams="cls"), batch()
    left = data.inputs["text.attention_mask"].flip(1)
    hidden: list[Tensor] = []
    model.backbone["text"].register_forward_hook(lambda _m, _a, out: hidden.append(out.last_hidden_state))
    with torch.no_grad():
        features = model.encode(Batch(data.inputs | {"text.attention_mask": left}), 1)
    first = torch.tensor([0, 4, 0, 0])
    assert torch.equal(features[:, :WIDTH], hidden[0][torch.arange(4), first])
