"""Training and prediction on bases of 8 and 4 bits equal those on the same numbers in float32."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import ELBO, adapted_layers, fingerprint, load, predict, save
from bayes_adapters.errors import ConfigError
from bayes_adapters.inference.modes import evaluating
from bayes_adapters.training import fit
from tests.helpers import token_batch
from tests.quantised.parts import (
    KINDS,
    MAKERS,
    ao,
    bnb,
    by_torchao,
    case,
    dense,
    four,
    needs_torchao,
    pair,
    plain,
    quantised,
)
from tests.refusals import refuses


def adam(parameters: Any) -> Any:
    return torch.optim.Adam(parameters, 0.01)


def loss_and_gradients(name: str, backbone: Any, *, checkpointed: bool) -> tuple[Any, Any, dict[str, Tensor]]:
    model, guide = pair(name, backbone)
    if checkpointed:
        backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elbo = ELBO(model, guide).train()
    torch.manual_seed(1)
    loss = elbo(token_batch())
    loss.backward()
    found = {path: p.grad for path, p in elbo.named_parameters() if p.requires_grad and p.grad is not None}
    assert len(found) == sum(p.requires_grad for p in elbo.parameters())
    return model, guide, {**found, "loss": loss.detach()}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize(
    ("kind", "name", "checkpointed"),
    [case(kind, "c-lora", kind == "bitsandbytes 8") for kind in MAKERS]
    + [case("bitsandbytes 4", "blob", True), case("torchao 8", "bayeslora-2026", True)],
)
def test_loss_and_gradients_are_those_of_the_numbers(kind: str, name: str, checkpointed: bool) -> None:
    _, _, found = loss_and_gradients(name, quantised(kind), checkpointed=checkpointed)
    _, _, expected = loss_and_gradients(name, dense(kind), checkpointed=False)
    assert found.keys() == expected.keys()
    for path, value in found.items():
        torch.testing.assert_close(value, expected[path], rtol=1e-4, atol=1e-5, msg=path)
        assert value.dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapted_layer_adds_to_what_its_base_returns(kind: str) -> None:
    model, _ = pair("lora", quantised(kind))
    layer = adapted_layers(model.backbone)["layers.1.mlp.down_proj"]
    x = torch.randn(3, 5, 128)
    expected = layer.base_layer(x) + layer.scaling * x @ layer.lora_A.T @ layer.lora_B.T  # type: ignore[union-attr]
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_from_the_first_prediction_to_the_loaded_adapter(kind: str, tmp_path: Path) -> None:
    """A pass without gradients comes first, and after each epoch: bitsandbytes repacks 4-bit weights there, if let."""
    model, guide = pair("c-lora", quantised(kind))
    before, batch = fingerprint(model.backbone), token_batch()
    numbers = predict(model, guide, batch, num_samples=3, seed=0).mean
    start = {path: copy.deepcopy(layer.lora_B) for path, layer in adapted_layers(model.backbone).items()}
    options: dict[str, Any] = {"recipe": None, "optimizer": adam, "progress": False}
    result = fit(model, guide, batch, epochs=2, validation=batch, **options)
    for path, layer in adapted_layers(model.backbone).items():
        assert (layer.lora_B - start[path]).abs().max() > 1e-3, path  # type: ignore[operator, union-attr]
    assert result.steps == 2
    assert result.history[-1]["nll"] < result.history[0]["nll"]
    assert fingerprint(model.backbone) == before == fingerprint(quantised(kind))
    trained = predict(model, guide, batch, num_samples=3, seed=0).mean
    assert not torch.allclose(trained, numbers)
    save(tmp_path, model, guide)
    again = load(tmp_path, quantised(kind))
    assert torch.equal(predict(*again, batch, num_samples=3, seed=0).mean, trained)


def test_4_bit_weights_stay_as_they_are_in_passes_without_gradients() -> None:
    """Where the CPU has AVX512-BF16, bitsandbytes repacks the weight in the first of them: other bytes, no gradient."""
    model, guide = pair("blob", quantised("bitsandbytes 4"))
    layers = [m for m in model.backbone.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 14
    before = [layer.weight.data.clone() for layer in layers]
    with torch.no_grad(), evaluating(model, guide):
        guide(token_batch())
    for layer, weight in zip(layers, before, strict=True):
        assert torch.equal(layer.weight.data, weight)
    ELBO(model, guide)(token_batch()).backward()


@pytest.mark.skipif(not bnb.functional.has_avx512bf16(), reason="only CPUs with AVX512-BF16 repack")
def test_a_repacked_base_is_refused() -> None:
    backbone = quantised("bitsandbytes 4")
    with torch.no_grad():
        backbone(**token_batch().inputs)
    with refuses(ConfigError, "14 4-bit layers", "'layers.0.self_attn.q_proj'"):
        pair("lora", backbone)
    with refuses(ConfigError, "14 4-bit layers", "'layers.0.self_attn.q_proj'"):
        fingerprint(backbone)


@needs_torchao
def test_kernels_that_hand_on_no_gradient_are_refused_in_any_loop() -> None:
    backbone = by_torchao(plain(), ao.Int8DynamicActivationInt8WeightConfig())
    model, guide = pair("blob", backbone)
    with refuses(ConfigError, "'layers.1.self_attn.q_proj'", "Linear"):
        ELBO(model, guide)(token_batch())
    assert predict(model, guide, token_batch(), num_samples=2).mean.isfinite().all()
    with refuses(ConfigError, "'layers.0.self_attn.o_proj'", "Linear"):
        fit(model, guide, token_batch(), epochs=1, recipe=None, progress=False)


def test_the_type_of_computation_is_that_of_the_layer() -> None:
    """4-bit weights that compute in bfloat16: the adapter stays in float32, and the output is as the base gives it."""
    backbone = plain()
    backbone.set_submodule(
        "layers.0.self_attn.q_proj", four(backbone.layers[0].self_attn.q_proj, compute_dtype=torch.bfloat16)
    )
    model, guide = pair("c-lora", backbone)
    ELBO(model, guide)(token_batch()).backward()
    for layer in adapted_layers(backbone).values():
        assert layer.lora_B.dtype == layer.lora_B.grad.dtype == torch.float32  # type: ignore[union-attr]
