"""The study of grounding on made shapes and tiny encoders: methods, training, answers, saved adapters."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from bayes_adapters import AdapterModel, Batch, adapted_layers, load, predict, save
from bayes_adapters.analysis.grounding import overall_iou, precision_at
from bayes_adapters.errors import ConfigError
from examples.grounding.experiment import CONDITIONS, LINEARS, measure, run
from examples.grounding.heads import GroundingHead
from examples.grounding.methods import METHODS, TASKS, VARIANTS, find
from examples.grounding.records import Row
from examples.grounding.training import first_head, train
from tests.grounding.parts import SETTINGS, encoders, scenes, study
from tests.internals import only_registered
from tests.refusals import refuses


def built(name: str) -> AdapterModel:
    method, task = find(name)
    torch.manual_seed(0)
    return method.build(study().parts(task, method.frozen))[0]


def trained_numbers(name: str) -> int:
    method, task = find(name)
    return sum(
        p.numel() for module in method.build(study().parts(task, method.frozen)) for p in module.parameters()
        if p.requires_grad
    )  # fmt: skip


def batch(frozen: bool, split: str = "test") -> Batch:
    return study().examples(split, "both", frozen).batch(torch.arange(4))


def test_rows() -> None:
    assert len(set(METHODS)) == len(METHODS)
    assert {find(name)[1] for name in METHODS} == set(TASKS)
    with refuses(ConfigError, "cola.rex"):
        find("cola.rex")


def test_batches_of_tokens_are_those_of_pictures_and_words() -> None:
    one, two = batch(True), batch(False)
    assert isinstance(one.targets, dict)
    assert isinstance(two.targets, dict)
    assert all(torch.equal(one.targets[name], two.targets[name]) for name in ("box", "mask"))
    vision = encoders()["vision"](two.inputs["vision.pixel_values"]).last_hidden_state
    torch.testing.assert_close(one.inputs["vision.signal"], vision)
    assert torch.equal(one.inputs["text.token_mask"], two.inputs["text.attention_mask"].bool())


@pytest.mark.parametrize("name", ["concat-lora.both", "cola.both"])
def test_every_method_starts_as_late_fusion(name: str) -> None:
    own = study()
    first, second = train(own, "late-fusion.both").model, built(name)
    second.head.load_state_dict(first_head(own, "both"))
    with torch.no_grad():
        outputs = first.eval()(batch(True))
        torch.testing.assert_close(second.eval()(batch(False)), outputs, atol=2e-5, rtol=1e-4)
    assert float(outputs[..., :4].std(0).max()) > 1e-3  # a head that has been trained


def test_the_matched_rank_trains_as_many_numbers() -> None:
    cola, matched, plain = (trained_numbers(f"{name}.both") for name in ("cola", "concat-lora-matched", "concat-lora"))
    layers = adapted_layers(built("concat-lora.both").backbone).values()
    per_rank = sum(layer.lora_A.shape[1] + layer.lora_B.shape[0] for layer in layers)  # type: ignore[union-attr]
    # What is left: half a rank, and CoLA's null descriptors, one per encoder.
    assert abs(cola - matched) <= per_rank / 2 + 2 * 16 < cola - plain


@pytest.mark.parametrize(("name", "hears"), [("from-text", "vision"), ("from-vision", "text"), ("uniform", "both")])
def test_one_direction_is_left(name: str, hears: str) -> None:
    method, task = find(f"cola-{name}.both")
    model, guide = method.build(study().parts(task, method.frozen))
    for layer in adapted_layers(model.backbone).values():
        for path in layer.inter.values():
            torch.nn.init.normal_(path.lora_B, std=0.3)
    said: dict[str, list[torch.Tensor]] = {"vision": [], "text": []}
    for encoder, own in said.items():
        model.backbone.get_submodule(encoder).register_forward_hook(
            lambda _m, _a, out, own=own: own.append(out.last_hidden_state)  # type: ignore[misc]
        )
    given = batch(False)
    inputs = given.inputs
    model.eval()
    with torch.no_grad():
        guide(given)
        for encoder in said:  # other pictures, or other words; those of the other encoder stay
            others = {k: v.flip(0) if k.startswith(encoder) else v for k, v in inputs.items()}
            guide(Batch(others, given.targets))
    moved = {
        "vision": not torch.allclose(said["vision"][0], said["vision"][2], atol=1e-5),
        "text": not torch.allclose(said["text"][0], said["text"][1], atol=1e-5),
    }
    assert moved == {encoder: hears in (encoder, "both") for encoder in moved}


@pytest.mark.parametrize("name", ["late-fusion.rec", "wander.res", "bayesian-cola.both", "concat-lora.learned"])
def test_a_run(name: str, tmp_path: Path) -> None:
    own = study(tmp_path)
    results, rows, gains = run(own, name)
    method, task = find(name)
    assert [r.condition for r in results] == list(CONDITIONS)
    assert len(rows) == sum(len(scenes()[condition]) for condition in CONDITIONS)
    boxes, masks = ("box" in TASKS[task], "mask" in TASKS[task])
    for result in results:
        said = [row for row in rows if row.condition == result.condition]
        assert math.isfinite(result.accuracy) == math.isfinite(result.nll) == math.isfinite(result.side) == boxes
        assert math.isfinite(result.overall_iou) == math.isfinite(result.ause) == masks
        if boxes:
            assert result.accuracy == precision_at(torch.tensor([row.box_iou for row in said]))
            assert 0 <= result.coverage <= 1
        if masks:
            assert 0.0 < result.mask_nll < 5.0
        assert (result.epistemic > 0) == (method.random and boxes)
    assert len(gains) == (2 * 2 * len(LINEARS) if "cola" in name else 0)
    assert (results[0].weight == pytest.approx(0.05)) == (task != "learned")
    assert bool(list(tmp_path.glob("late-fusion.*"))) == (not name.startswith("wander"))


def test_measured_masks_are_the_predicted_ones() -> None:
    own = study()
    trained = train(own, "late-fusion.res")
    results, rows = measure(own, "late-fusion.res", trained)
    data = own.examples("test", "res", frozen=True)
    whole = data.batch(torch.arange(len(data)))
    said = predict(trained.model, trained.guide, whole, num_samples=1)["mask"]
    wanted = scenes()["test"].masks(torch.arange(len(data))).long()
    assert results[0].overall_iou == pytest.approx(overall_iou(said.mean, wanted), nan_ok=True)
    nll = torch.nn.functional.binary_cross_entropy(said.mean.double(), wanted.double(), reduction="none")
    assert results[0].mask_nll == pytest.approx(float(nll.mean()), rel=1e-4)
    assert [row.scene for row in rows if row.condition == "test"] == scenes()["test"].scene.tolist()
    assert isinstance(rows[0], Row)


def test_an_adapter_is_saved_and_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_registered(monkeypatch, GroundingHead)
    method, task = find("bayesian-cola.learned")
    model, guide = method.build(study().parts(task, method.frozen))
    save(tmp_path / "adapter", model, guide)
    again = load(tmp_path / "adapter", study().encoders())
    both = [predict(*pair, batch(False), num_samples=2).mean for pair in ((model, guide), again)]
    assert torch.equal(*both)


def test_settings_of_the_tests_are_those_of_the_study() -> None:
    assert SETTINGS.alpha == 0.1
    assert set(VARIANTS) >= {"late-fusion", "concat-lora", "concat-lora-matched", "cola", "bayesian-cola", "wander"}
