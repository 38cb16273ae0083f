"""CoLA on Swin and Swin V2 beside text and speech encoders: from the first step to a saved file."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Wav2Vec2Config, Wav2Vec2Model

from bayes_adapters import ELBO, Batch, load, predict, save
from bayes_adapters.guides import Hypernetwork
from tests.cola.parts import cola
from tests.helpers import bert, logits, swin, whisper
from tests.text_and_audio import batch


def wav2vec2() -> nn.Module:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 24, "conv_dim": (8, 8), "conv_kernel": (4, 4), "conv_stride": (4, 4)}
    sizes |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    noise = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    return Wav2Vec2Model(Wav2Vec2Config(**sizes, **dict.fromkeys(noise, 0.0), apply_spec_augment=False)).eval()


def _inputs(name: str) -> dict[str, Tensor]:
    if name == "text":
        return {k: v for k, v in batch().inputs.items() if k.startswith("text.")}
    if name == "sound":
        return {"sound.input_features": batch().inputs["audio.input_features"]}
    return {"sound.input_values": torch.randn(4, 80, generator=torch.Generator().manual_seed(4))}


PAIRS: dict[str, tuple[Callable[[], nn.ModuleDict], str]] = {
    "Swin and BERT": (lambda: nn.ModuleDict({"image": swin((2, 2), 1), "text": bert(2)}), "text"),
    "Whisper and Swin V2": (lambda: nn.ModuleDict({"sound": whisper(2), "image": swin((2, 2), 2)}), "sound"),
    "Swin V2 and wav2vec 2.0": (lambda: nn.ModuleDict({"image": swin((2, 2), 2), "sound": wav2vec2()}), "wave"),
}
GUIDES: dict[str, Callable[[Any], Hypernetwork]] = {
    "point": lambda m: Hypernetwork(m, bottleneck={"image": 3}, gamma=4),
    "Gaussian": lambda m: Hypernetwork(m, bottleneck=3, scale="softplus"),
}


@pytest.mark.parametrize("kind", list(GUIDES))
@pytest.mark.parametrize("pair", list(PAIRS))
def test_a_pair_starts_frozen_trains_predicts_and_survives_a_file(pair: str, kind: str, tmp_path: Path) -> None:
    build, other = PAIRS[pair]
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    data = Batch({**_inputs(other), "image.pixel_values": pixels}, batch().targets)
    model = cola(build(), fill=False, depths="every-k", streams="mean")
    guide = GUIDES[kind](model)
    start = logits(guide, data)
    with model.adapters_disabled():
        assert torch.equal(start, logits(guide, data)), "δ = 0"
    elbo = ELBO(model, guide, kl_weight=0.0 if kind == "point" else 1e-3)
    parameters = {**model.trainable_parameters(), **{f"guide.{n}": p for n, p in guide.named_parameters()}}
    optimizer = torch.optim.Adam(list(parameters.values()), lr=1e-2)
    losses = []
    for step in range(4):
        torch.manual_seed(1)
        optimizer.zero_grad()
        loss = elbo(data)
        losses.append(loss.item())
        loss.backward()
        still = {n for n, p in parameters.items() if p.grad is None or p.grad.abs().max() == 0}
        if step:
            assert {n for n in still if "null" not in n} == set()
        optimizer.step()
    assert all(math.isfinite(x) for x in losses)
    assert losses[-1] < losses[0]
    whole = predict(model, guide, data.without_targets(), num_samples=4, return_samples=True)
    parts = predict(model, guide, [data[:1], data[1:]], num_samples=4, chunk_size=3, return_samples=True)
    assert whole.samples is not None
    torch.testing.assert_close(whole.samples, parts.samples, rtol=1e-4, atol=1e-5)
    save(tmp_path / "a", model, guide)
    again = predict(*load(tmp_path / "a", build()), data.without_targets(), num_samples=4, return_samples=True)
    torch.testing.assert_close(again.samples, whole.samples, rtol=1e-6, atol=1e-7)
    for name in model.modalities:
        assert torch.isfinite(logits(guide, model.withhold(data, name))).all()
