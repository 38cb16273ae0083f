"""Backbones that change the length: ``token_mask`` says which of their hidden states are real."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2Config, Wav2Vec2Model

from bayes_adapters import ELBO, Batch, Bernoulli, predict
from bayes_adapters.errors import DataError
from bayes_adapters.guides import Contextual, MCDropout
from bayes_adapters.models import AdapterDropout, StochasticCore
from tests.helpers import fill_B
from tests.refusals import refuses

STRIDE = 6
"""Samples a hidden state."""
SHORT, LONG = 30, 66


def wav2vec() -> Wav2Vec2Model:
    """Two convolutions of strides 3 and 2, each with a layer norm of its own, so that padding leaks into nothing."""
    torch.manual_seed(0)
    off = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    config = Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, conv_dim=(8, 8),
        conv_kernel=(3, 2), conv_stride=(3, 2), feat_extract_norm="layer", num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, apply_spec_augment=False, **dict.fromkeys(off, 0.0),
    )  # fmt: skip
    return Wav2Vec2Model(config).eval()


def recordings() -> tuple[Batch, Batch]:
    """A short recording alone, and the same padded beside a long one."""
    torch.manual_seed(1)
    waves, mask = torch.randn(2, LONG), torch.ones(2, LONG, dtype=torch.long)
    waves[0, SHORT:] = 9.0
    mask[0, SHORT:] = 0
    targets = torch.tensor([1.0, 0.0])
    both = {"input_values": waves, "attention_mask": mask, "token_mask": mask[:, STRIDE - 1 :: STRIDE]}
    return Batch({"input_values": waves[:1, :SHORT]}, targets[:1]), Batch(both, targets)


def pair(kind: str, pooling: str) -> tuple[Any, Any]:
    options: Any = {"targets": ["q_proj", "v_proj"], "rank": 2, "pooling": pooling}
    backbone = wav2vec()
    model: Any
    if kind == "contextual":
        model = StochasticCore(backbone, Bernoulli(), **options)
        guide: Any = Contextual(model, width=4)
    else:
        model = AdapterDropout(backbone, Bernoulli(), drop=0.4, **options)
        guide = MCDropout(model)
    return model, guide


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("kind", ["contextual", "dropout"])
def test_padding_of_a_shortened_recording_counts_nowhere(kind: str, pooling: str) -> None:
    model, guide = pair(kind, pooling)
    fill_B(model)
    alone, padded = recordings()

    def probs(batch: Batch) -> Tensor:
        return predict(model, guide, batch, num_samples=4, seed=2).probs

    assert torch.allclose(probs(padded)[:1], probs(alone), atol=1e-5)
    changed = padded.inputs["token_mask"].clone()
    changed[0] = 1
    assert not torch.allclose(probs(Batch(padded.inputs | {"token_mask": changed}))[:1], probs(alone), atol=1e-3)


def test_its_padding_has_no_kl() -> None:
    model, guide = pair("contextual", "mean")  # B = 0: no layer's feature depends on what another one drew
    alone, padded = recordings()
    kl = ELBO(model, guide).terms(alone).kl
    short, whole = padded[:1], ELBO(model, guide).terms(padded).kl
    assert torch.allclose(ELBO(model, guide).terms(short).kl, kl, rtol=1e-4)
    assert torch.allclose(whole, (kl + ELBO(model, guide).terms(padded[1:]).kl) / 2, rtol=1e-4)


def test_the_backbone_does_not_see_it() -> None:
    model, guide = pair("contextual", "mean")
    seen: list[str] = []
    model.backbone.register_forward_pre_hook(lambda *call: seen.extend(call[2]), with_kwargs=True)
    predict(model, guide, recordings()[1], num_samples=1)
    assert set(seen) == {"input_values", "attention_mask"}


def test_a_mask_of_the_waveform_is_refused_with_the_fix() -> None:
    _, padded = recordings()
    deaf = Batch({k: v for k, v in padded.inputs.items() if k != "token_mask"}, padded.targets)
    for kind in ("contextual", "dropout"):
        model, guide = pair(kind, "mean")
        with refuses(DataError, "inputs['token_mask']"):
            predict(model, guide, deaf)
