"""Merged weights compute what the adapter did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bayes_adapters import ELBO, Bernoulli, adapted_layers, predict, save
from bayes_adapters.adapters.as_lora import as_lora
from bayes_adapters.adapters.installation import adapters_disabled
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, Hypernetwork
from bayes_adapters.models import LoRA, StochasticCore
from bayes_adapters.surgery.merging import merge, merge_intra, merged
from bayes_adapters.training import fit
from tests.cola.parts import cola
from tests.helpers import bert, fill_B, gpt2, logits, token_batch
from tests.refusals import refuses
from tests.text_and_audio import batch


@pytest.mark.parametrize(("build", "targets"), [(bert, ["query", "value"]), (gpt2, ["c_attn", "c_proj"])])
def test_a_merged_backbone_equals_the_adapted_one(build: Any, targets: list[str]) -> None:
    net, inputs = build(), token_batch().inputs
    fill_B(LoRA(net, Bernoulli(), targets=targets, rank=3))
    before = {n: p.clone() for n, p in net.named_parameters()}
    with torch.no_grad():
        adapted = net(**inputs).last_hidden_state
        merged = merge(net)
        torch.testing.assert_close(merged(**inputs).last_hidden_state, adapted, rtol=1e-4, atol=1e-5)
        with adapters_disabled(net):
            assert not torch.allclose(net(**inputs).last_hidden_state, adapted)
    assert not adapted_layers(merged)
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters()), "the given backbone is left alone"


def test_the_intra_path_merges_and_the_inter_path_stays() -> None:
    model, data = cola(), batch()
    guide = Hypernetwork(model, gamma=4)
    merged = merge_intra(model)
    again = Hypernetwork(merged, gamma=4)
    again.load_state_dict(guide.state_dict())
    layers = adapted_layers(merged.backbone).values()
    assert all(layer.lora_B.abs().max() == 0 and layer.inter for layer in layers)
    torch.testing.assert_close(logits(again, data), logits(guide, data), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "facts"),
    [
        (lambda: merge(cola().backbone), ("audio", "merge_intra(model)", "ConcatLoRA")),
        (lambda: merge(StochasticCore(bert(), Bernoulli()).backbone), ("core", "to_lora")),
        (lambda: merge_intra(cola(share="A")), ("'text.encoder.layer.0.attention.self.query'", "share='none'")),
    ],
)
def test_what_cannot_be_merged_says_why(call: Any, facts: tuple[object, ...]) -> None:
    with refuses(ConfigError, *facts):
        call()


def lora(build: Any = bert, **options: Any) -> LoRA:
    return fill_B(LoRA(build(), Bernoulli(), **{"rank": 3} | options))  # type: ignore[return-value]


@pytest.mark.parametrize(("build", "targets"), [(bert, ["query", "value"]), (gpt2, ["c_attn", "c_proj"])])
def test_within_the_context_the_weights_are_merged_and_after_it_bit_equal(build: Any, targets: list[str]) -> None:
    model = lora(build, targets=targets)
    weights = dict(model.named_parameters())
    before = {name: p.clone() for name, p in weights.items()}
    adapted = predict(model, Delta(model), token_batch()).mean
    with merged(model) as same, torch.no_grad():
        assert same is model
        torch.testing.assert_close(predict(model, Delta(model), token_batch()).mean, adapted, rtol=1e-4, atol=1e-5)
        for layer in adapted_layers(model.backbone).values():
            layer.lora_B.zero_()
        torch.testing.assert_close(predict(model, Delta(model), token_batch()).mean, adapted, rtol=1e-4, atol=1e-5)
    fill_B(model)
    after = dict(model.named_parameters())
    assert all(after[name] is p for name, p in weights.items()), "the tensors themselves are back"
    assert all(torch.equal(after[name], p) for name, p in before.items())
    assert torch.equal(predict(model, Delta(model), token_batch()).mean, adapted)


def test_a_backbone_alone_may_be_merged_for_a_while() -> None:
    net = lora().backbone
    with torch.no_grad():
        adapted = net(**token_batch().inputs).last_hidden_state
        with merged(net):
            found = net(**token_batch().inputs).last_hidden_state
        torch.testing.assert_close(found, adapted, rtol=1e-4, atol=1e-5)
        assert torch.equal(net(**token_batch().inputs).last_hidden_state, adapted)


def test_an_error_inside_or_on_the_way_in_restores_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lora()
    weights = dict(model.named_parameters())
    with pytest.raises(KeyError), merged(model):
        raise KeyError
    calls = []

    def second_time_unlucky(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return as_lora(*args)

    monkeypatch.setattr("bayes_adapters.surgery.merging.as_lora", second_time_unlucky)
    with pytest.raises(MemoryError), merged(model):
        raise AssertionError("it was not merged")
    after = dict(model.named_parameters())
    assert all(after[name] is p for name, p in weights.items())
    assert all(layer.enabled and not layer.merged for layer in adapted_layers(model.backbone).values())


def test_what_is_refused_while_merged(tmp_path: Path) -> None:
    model = lora()
    guide, batch = Delta(model), token_batch()
    path = next(iter(model.layers))
    with merged(model):
        with refuses(ConfigError, path, "trained"):
            fit(model, guide, batch, epochs=1, progress=False)
        with refuses(ConfigError, path, "trained"):
            ELBO(model, guide)(batch)
        for what, call in {
            "saved": lambda: save(tmp_path, model, guide),
            "merged again": lambda: merge(model.backbone),
            "disabled": lambda: model.adapters_disabled().__enter__(),
        }.items():
            with refuses(ConfigError, path, what):
                call()
        with refuses(ConfigError, path, "merged again"), merged(model):
            pass
        assert predict(model, guide, batch).mean.shape == (5,)
    fit(model, guide, batch, epochs=1, progress=False)
    save(tmp_path, model, guide)


def test_tied_weights_keep_their_own_while_merged() -> None:
    """The other module had no part in the adapter."""
    model = lora()
    layer = adapted_layers(model.backbone)[model.layers[0]]
    other = torch.nn.Linear(16, 16)
    other.weight = layer.base_layer.weight
    before = other.weight.clone()
    with merged(model):
        assert torch.equal(other.weight, before)
    assert other.weight is layer.base_layer.weight
