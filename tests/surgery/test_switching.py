"""Several adapters on one backbone answer as models do that have a backbone each."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bayes_adapters import Categorical, Gaussian, adapted_layers, load, predict, remove, save
from bayes_adapters.adapters.linear import AdaptedLinear
from bayes_adapters.errors import ConfigError
from bayes_adapters.guides import Delta, MeanField
from bayes_adapters.models import LoRA, StochasticDown
from bayes_adapters.surgery.merging import merged
from bayes_adapters.surgery.switching import activate, active
from bayes_adapters.training import fit
from tests.helpers import bert, core_model, fill_B, token_batch
from tests.refusals import refuses


def first(backbone: Any) -> tuple[Any, Any]:
    """Random cores on query and value."""
    model = core_model(backbone=backbone)
    torch.manual_seed(21)
    return model, MeanField(model)


def second(backbone: Any) -> tuple[Any, Any]:
    """A random A of another rank, on other layers too, for another task."""
    torch.manual_seed(22)
    targets = ["query", "attention.output.dense"]
    model = fill_B(StochasticDown(backbone, Categorical(3), targets=targets, rank=2, num_data=9))
    return model, MeanField(model)


def third(backbone: Any) -> tuple[Any, Any]:
    torch.manual_seed(23)
    model = fill_B(LoRA(backbone, Gaussian(), targets=["value"], rank=1))
    return model, Delta(model)


BUILDS = [first, second, third]


def answer(model: Any, guide: Any) -> Tensor:
    return predict(model, guide, token_batch().without_targets(), num_samples=3, return_samples=True).samples


def on_one_backbone() -> list[tuple[Any, Any]]:
    backbone = bert()
    return [build(remove(backbone)) for build in BUILDS]


def test_each_answers_as_if_it_had_the_backbone_for_itself() -> None:
    pairs, alone = on_one_backbone(), [build(bert()) for build in BUILDS]
    expected = [answer(*pair) for pair in alone]
    for number in (0, 2, 1, 0, 1, 2, 2):
        model, guide = pairs[number]
        assert activate(model) is model
        assert torch.equal(answer(model, guide), expected[number])
    remove(pairs[0][0].backbone)
    assert torch.equal(answer(activate(pairs[1][0]), pairs[1][1]), expected[1]), "after remove(backbone), too"


def test_a_context_puts_back_what_was_there() -> None:
    (a, of_a), (b, of_b), (c, _) = on_one_backbone()
    expected = answer(activate(a), of_a)
    before = adapted_layers(a.backbone)
    with active(b) as model:
        assert model is b
        inner = answer(b, of_b)
        with active(c):
            assert list(adapted_layers(a.backbone)) == c.layers
        assert torch.equal(answer(b, of_b), inner)
        with refuses(ConfigError, "'encoder.layer.0.attention.self.query'", "activate(model)"):
            answer(a, of_a)
    with pytest.raises(KeyError), active(b):
        raise KeyError
    assert {id(layer) for layer in adapted_layers(a.backbone).values()} == {id(layer) for layer in before.values()}
    assert torch.equal(answer(a, of_a), expected)


def test_one_is_trained_and_the_others_stay_as_they_were() -> None:
    (a, of_a), (b, of_b), _ = on_one_backbone()
    expected = answer(activate(a), of_a)
    frozen = {name: p.clone() for name, p in remove(a.backbone).named_parameters()}
    batch = token_batch(targets=torch.tensor([0, 1, 2, 1, 0]))
    with active(b):
        before = answer(b, of_b)
        fit(b, of_b, batch, epochs=2, progress=False)
        assert not torch.equal(answer(b, of_b), before)
    assert all(torch.equal(p, frozen[name]) for name, p in a.backbone.named_parameters())
    assert torch.equal(answer(activate(a), of_a), expected)


def test_each_is_saved_and_loaded_onto_the_shared_backbone(tmp_path: Path) -> None:
    pairs = on_one_backbone()
    expected = []
    for number, (model, guide) in enumerate(pairs):
        with active(model):
            expected.append(answer(model, guide))
            save(tmp_path / str(number), model, guide)
    with refuses(ConfigError, "activate(model)"):
        save(tmp_path / "out", *pairs[0])
    backbone = bert()
    loaded = [load(tmp_path / str(number), remove(backbone)) for number in range(3)]
    for pair, own in zip(loaded, expected, strict=True):
        assert torch.equal(answer(activate(pair[0]), pair[1]), own)


def test_another_thread_waits_until_the_context_ends() -> None:
    (a, of_a), (b, of_b), _ = on_one_backbone()
    expected = answer(activate(a), of_a)
    found: list[Tensor] = []
    thread = threading.Thread(target=lambda: found.append(answer(a, of_a)))
    with active(b):
        thread.start()
        thread.join(0.3)
        assert not found
        answer(b, of_b)
    thread.join(60)
    assert torch.equal(found[0], expected)


def test_adapters_follow_a_backbone_that_was_moved_while_they_were_out() -> None:
    (a, _), (b, _), _ = on_one_backbone()
    activate(b)
    b.backbone.to("meta")
    activate(a)
    assert {p.device.type for p in a.backbone.parameters()} == {"meta"}


def test_what_cannot_be_switched() -> None:
    (a, _), (b, _), (c, _) = on_one_backbone()
    with merged(c), refuses(ConfigError, c.layers[0], "switched"):
        activate(a)
    activate(b)
    b.backbone.encoder.layer[1].attention.self.value = torch.nn.Linear(16, 16)
    with refuses(ConfigError, "'encoder.layer.1.attention.self.value'"):
        activate(a)
    b.require_installed()
    assert all(isinstance(b.backbone.get_submodule(path), AdaptedLinear) for path in b.layers)


def test_a_model_without_adapters_runs_on_the_frozen_backbone_only() -> None:
    batch = token_batch().without_targets()
    head = LoRA(bert(), Categorical(3), targets=None)
    expected = predict(head, Delta(head), batch).probs
    other = LoRA(head.backbone, Categorical(3), targets=["query"])
    fill_B(other)
    with refuses(ConfigError, "'encoder.layer.0.attention.self.query'"):
        predict(head, Delta(head), batch)
    with active(head):
        assert torch.equal(predict(head, Delta(head), batch).probs, expected)
    other.require_installed()
