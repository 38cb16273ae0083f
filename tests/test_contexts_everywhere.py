"""Several contexts under every kind of output: both are read, what is missing is null, and attribution sums up."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import (
    ELBO,
    AdapterGuide,
    AdapterModel,
    Batch,
    Categorical,
    Frames,
    Tagging,
    adapted_layers,
    load,
    predict,
    save,
)
from bayes_adapters.analysis.attribution import attribute
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import CrossAttention, Hypernetwork
from bayes_adapters.likelihoods import BoundingBox, Candidates, Likelihood, Masks, Tasks
from bayes_adapters.models import CoLA, StochasticCore
from bayes_adapters.testing import check_guide
from tests.helpers import CONTEXT, bert, fill_B, vit, whisper
from tests.refusals import refuses

SIZE, OTHER = 4, 5
BOXES = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.3, 0.6, 0.2, 0.2], [0.6, 0.4, 0.3, 0.3], [0.5, 0.2, 0.4, 0.2]])
MASKED = Masks((2, 2), (8, 8), skip=1)
BACKBONES: dict[str, Any] = {"text": bert, "image": vit, "audio": whisper}


def inputs(own: str) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(5)
    if own == "image":
        return {"pixel_values": torch.randn(SIZE, 3, 16, 16, generator=rng)}
    if own == "audio":
        return {"input_features": torch.randn(SIZE, 8, 20, generator=rng)}
    return {"input_ids": torch.randint(0, 40, (SIZE, 5), generator=rng)}


def frames(width: int, lacks: int) -> Frames:
    mask = torch.ones(SIZE, 3, dtype=torch.bool)
    mask[lacks] = False
    return Frames(torch.randn(SIZE, 3, width, generator=torch.Generator().manual_seed(width)), mask)


def conditioned(own: str, likelihood: Likelihood, targets: Any) -> tuple[AdapterGuide, Batch]:
    """The other two modalities condition the cores of ``own``'s encoder; row 1 lacks one of them, row 2 the other."""
    first, second = sorted(set(BACKBONES) - {own})
    torch.manual_seed(1)
    model = fill_B(StochasticCore(BACKBONES[own](1), likelihood, targets="all-linear", rank=2))
    guide = CrossAttention(model, context_dim={first: CONTEXT, second: OTHER}, dim=4, scale="softplus")
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if "null" in name:
                parameter.normal_()
    context = {first: frames(CONTEXT, 1), second: frames(OTHER, 2)}
    return guide, Batch(inputs(own), targets, context)


def encoders() -> nn.ModuleDict:
    return nn.ModuleDict({name: build(1) for name, build in BACKBONES.items()})


def in_lockstep(dense: Any, likelihood: Likelihood, targets: Any) -> tuple[AdapterGuide, Batch]:
    """Each of three encoders has the other two as its sources."""
    torch.manual_seed(1)
    model = fill_B(CoLA(encoders(), likelihood, rank=2, dense=dense))
    for null in model.null.values():
        nn.init.normal_(null)
    for layer in adapted_layers(model.backbone).values():
        for path in layer.inter.values():
            nn.init.normal_(path.lora_B)
    guide = Hypernetwork(model, gamma=4, scale="softplus")
    found = {f"{own}.{name}": value for own in BACKBONES for name, value in inputs(own).items()}
    found |= {"text.present": torch.tensor([1, 0, 1, 1]), "audio.present": torch.tensor([1, 1, 0, 1])}
    return guide, Batch(found, targets)


def cells() -> Tensor:
    return torch.randint(2, (SIZE, 8, 8), generator=torch.Generator().manual_seed(2))


SYSTEMS: dict[str, Any] = {
    "image.box-and-mask": lambda: conditioned(
        "image", Tasks({"box": BoundingBox(), "mask": MASKED}), {"box": BOXES, "mask": cells()}
    ),
    "image.mask": lambda: conditioned("image", MASKED, cells()),
    "audio.tokens": lambda: conditioned("audio", Tagging(3), torch.arange(SIZE * 10).reshape(SIZE, 10) % 3),
    "audio.class": lambda: conditioned("audio", Categorical(3), torch.arange(SIZE) % 3),
    "text.lists": lambda: conditioned("text", Candidates(), torch.tensor([[0, 1], [0, 0], [1, 0], [1, 1]])),
    "all.mask": lambda: in_lockstep("image", MASKED, cells()),
    "all.segments": lambda: in_lockstep(3, Tagging(3), torch.arange(SIZE * 3).reshape(SIZE, 3) % 3),
}
every_system = pytest.mark.parametrize("name", SYSTEMS)


def said(guide: AdapterGuide, batch: Batch) -> Tensor:
    found = predict(guide.model, guide, batch, num_samples=3, seed=1, return_samples=True).samples
    assert found is not None
    return found.flatten(2) if found.dim() > 2 else found[..., None]


@every_system
def test_each_is_read_where_it_is_there(name: str) -> None:
    guide, batch = SYSTEMS[name]()
    allowed = guide.model.withholdable(batch)
    everything = said(guide, batch)
    assert len(allowed) == (3 if name == "all.segments" else 2)
    for modality in allowed:
        changed = (said(guide, guide.model.withhold(batch, modality)) - everything).abs().amax((0, 2))
        assert float(changed[0]) > 1e-6, modality
        lacks = (
            {"text": 1, "audio": 2} if name.startswith("all") else dict(zip(sorted(batch.context), (1, 2), strict=True))
        )
        if name != "text.lists" and modality in lacks:  # a list's choice changes with its other rows
            assert float(changed[lacks[modality]]) == 0, modality


@every_system
def test_attribution_adds_up_to_what_all_do_together(name: str) -> None:
    guide, batch = SYSTEMS[name]()
    model = guide.model
    found = attribute(model, guide, batch, num_samples=3, method="shapley", seed=1)
    names = found.modalities
    everything, nothing = (found.uncertainty[frozenset(given)] for given in (names, []))
    for part in ("total", "aleatoric", "epistemic"):
        changes = sum(getattr(change, part) for change in found.changes.values())
        torch.testing.assert_close(changes, getattr(everything, part) - getattr(nothing, part), rtol=0, atol=1e-9)
    bare = predict(model, guide, model.withhold(batch, *names), num_samples=3, seed=1)
    torch.testing.assert_close(nothing.total.float(), bare.total, rtol=0, atol=1e-5)
    assert float(found.changes[names[0]].epistemic.abs().max()) > 1e-7


@every_system
def test_it_trains_and_is_kept(name: str, tmp_path: Path) -> None:
    guide, batch = SYSTEMS[name]()
    model = guide.model
    batch = replace(batch, index=torch.arange(SIZE))
    ELBO(model, guide)(batch).backward()
    for context in batch.context:
        gradients = [p.grad for n, p in guide.named_parameters() if f".{context}." in n and p.grad is not None]
        assert any(float(gradient.abs().max()) > 0 for gradient in gradients), context
    save(tmp_path / "adapter", model, guide)
    again = load(tmp_path / "adapter", BACKBONES[name.split(".")[0]](1) if batch.context else encoders())
    assert torch.equal(said(again[1], batch), said(guide, batch))


@pytest.mark.parametrize("name", [name for name in SYSTEMS if not name.startswith(("all", "text"))])
def test_the_checks_of_guides_hold(name: str) -> None:
    guide, batch = SYSTEMS[name]()
    likelihood = guide.model.likelihood

    def build() -> AdapterModel:
        return conditioned(name.split(".")[0], copy.deepcopy(likelihood), batch.targets)[0].model

    wide = dict(guide.widths)
    report = check_guide(
        lambda model: CrossAttention(model, context_dim=wide, dim=4),
        build,
        batch,
        checks=["frozen", "padding", "scale", "cuts"],
    )
    assert report.ok, report


def test_a_task_has_its_own_attribution() -> None:
    guide, batch = SYSTEMS["image.box-and-mask"]()
    parts = {t: attribute(guide.model, guide, batch, num_samples=3, task=t, seed=1) for t in (None, "box", "mask")}
    box, mask = (parts[task].changes["audio"].total for task in ("box", "mask"))
    assert box.shape == (SIZE, 4)
    assert mask.shape == (SIZE, 8, 8)
    whole = parts[None].changes["audio"].total
    torch.testing.assert_close(whole, box.sum(-1) + mask.flatten(1).sum(-1), rtol=0, atol=1e-4)
    with refuses(ConfigError, "shape", "box", "mask"):
        attribute(guide.model, guide, batch, task="shape")


def test_the_encoder_whose_tokens_have_the_targets_is_always_there() -> None:
    """Without it there is nothing to answer, so it would seem to add all there is to be unsure of."""
    guide, batch = SYSTEMS["all.mask"]()
    assert guide.model.withholdable(batch) == ["text", "audio"]
    with refuses(ConfigError, "'image'", "text, audio"):
        guide.model.withhold(batch, "image")
    with refuses(ConfigError, "'image'", "text, audio"):
        attribute(guide.model, guide, batch, modalities=["image"], num_samples=3)
    assert attribute(guide.model, guide, batch, num_samples=3, seed=1).modalities == ["text", "audio"]


def test_lists_are_known_and_their_answers_are_not() -> None:
    guide, batch = SYSTEMS["text.lists"]()
    other = replace(batch, targets=torch.tensor([[0, 0], [0, 1], [1, 1], [1, 0]]))
    one, two = (attribute(guide.model, guide, b, num_samples=3, seed=1).changes["audio"].total for b in (batch, other))
    assert torch.equal(one, two)
    with refuses(DataError, -100):
        attribute(guide.model, guide, batch.without_targets(), num_samples=3)
