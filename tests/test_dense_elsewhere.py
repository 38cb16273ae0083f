"""Outputs per token and segment beyond one pass: training, checkpointed and windowed encoders, linearised answers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayes_adapters import ELBO, Batch, Categorical, Tagging, predict
from bayes_adapters.guides import Delta, Hypernetwork, MeanField
from bayes_adapters.inference.linearised import Tangent
from bayes_adapters.models import CoLA, ConcatCore, ConcatLoRA
from bayes_adapters.training import fit
from tests.helpers import bert, fill_B, swin
from tests.test_dense_separate import LABELS, B, T, flat, folded, guides
from tests.test_recomputation import gradients, same, switch_on
from tests.text_and_audio import encoders

DENSE: dict[str, dict[str, Any]] = {
    "tokens": {"dense": "text"},
    "segments": {"dense": T},
    "separate": {"dense": T, "separate": True},
}
TARGETS = {"tokens": torch.randint(0, 3, (B * T, 7)), "segments": torch.randint(0, 3, (B * T, T)), "separate": LABELS}


def given(kind: str) -> Batch:
    return folded() if kind == "separate" else Batch(flat().inputs, TARGETS[kind], index=torch.arange(B * T))


def made(structure: type[Any], kind: str, **options: Any) -> Any:
    torch.manual_seed(2)
    return fill_B(structure(encoders(1, 1), Tagging(3), rank=2, **DENSE[kind], **options))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("structure", [ConcatLoRA, CoLA])
def test_checkpointed_segments_have_the_same_gradients(structure: type[Any]) -> None:
    model = made(structure, "separate")
    guide = Hypernetwork(model, gamma=2, scale="softplus") if structure is CoLA else Delta(model)
    elbo = ELBO(model, guide).train()
    expected = gradients(elbo, [folded()])
    switch_on(model.backbone)
    same(gradients(elbo, [folded()]), expected)


@pytest.mark.parametrize("kind", DENSE)
def test_a_fit_lowers_the_loss(kind: str) -> None:
    model, data = made(ConcatLoRA, kind), given(kind)
    guide = Delta(model)
    before = ELBO(model, guide)(data).item()
    fit(model, guide, data, epochs=8, optimizer=lambda p: torch.optim.Adam(p, lr=1e-2), progress=False)
    assert ELBO(model, guide)(data).item() < before - 0.05


@pytest.mark.parametrize("kind", DENSE)
def test_linearised_answers_are_those_of_small_noise(kind: str) -> None:
    """With σ → 0 a network is its tangent: both agree to second order in σ, not exactly. J is each example's own."""
    model, data = made(ConcatCore, kind, num_data=B * T, prior=dist.Normal(0.0, 0.1)), given(kind)
    guide = MeanField(model)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            parameter.fill_(-4.0 if "rho" in name or "scale" in name else 0.1)
    found = [predict(model, guide, data, num_samples=3, seed=1, linearised=way) for way in (False, True)]
    torch.testing.assert_close(found[1].mean, found[0].mean, rtol=0, atol=1e-2)
    assert not torch.equal(found[1].mean, found[0].mean)
    tangent = Tangent(model, {site.name: torch.randn(site.shape) for site in model.latent_sites})
    for one, other in zip(tangent.at(data), tangent._one_by_one(data), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_segments_of_a_windowed_encoder_are_as_examples_of_their_own() -> None:
    torch.manual_seed(6)
    nets = [nn.ModuleDict({"image": swin(), "text": bert(2)}) for _ in range(2)]
    inputs = {"image.pixel_values": torch.randn(B * T, 3, 16, 16), "text.input_ids": torch.randint(0, 40, (B * T, 5))}
    apart = fill_B(CoLA(nets[0], Tagging(3), rank=2, depths="every-k", dense=T, separate=True))
    examples = CoLA(nets[1], Categorical(3), rank=2, depths="every-k")
    for layer in apart.installed.values():
        for inter in layer.inter.values():
            nn.init.normal_(inter.lora_B)
    examples.load_state_dict(apart.state_dict())
    mine, theirs = guides("cola", apart, examples)
    data = Batch({name: value.unflatten(0, (B, T)) for name, value in inputs.items()})
    found = predict(apart, mine, data, mean_only=True).mean
    torch.testing.assert_close(found.flatten(0, 1), predict(examples, theirs, Batch(inputs), mean_only=True).mean)
