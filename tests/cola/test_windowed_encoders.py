"""CoLA on encoders that attend within windows and widen from stage to stage: Swin and Swin V2."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayes_adapters import Batch, adapted_layers
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.guides import Delta, Hypernetwork
from bayes_adapters.models import CoLA
from tests.cola.parts import cola
from tests.helpers import bert, logits, swin
from tests.refusals import refuses
from tests.text_and_audio import batch

PIXELS = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(3))
EVERY = {"depths": "every-k"}


def encoders(version: int = 1, text: int = 2, window: int = 2) -> nn.ModuleDict:
    return nn.ModuleDict({"text": bert(text), "image": swin((2, 2), version, window)})


def images(size: int = 4, pixels: Tensor = PIXELS, **more: Tensor) -> Batch:
    inputs = {k: v for k, v in batch(4).inputs.items() if k.startswith("text.")}
    return Batch(inputs | {"image.pixel_values": pixels} | more)[:size]


def _layer_calls(model: CoLA, guide: Any, data: Batch, path: str) -> tuple[Tensor, Tensor]:
    """What one adapted layer saw and returned."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = model.backbone.get_submodule(path).register_forward_hook(lambda _m, x, y: seen.append((x[0], y)))
    with torch.no_grad():
        guide(data)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("block", "windows"), [(0, 16), (1, 16), (2, 4), (3, 4)])
def test_every_window_of_an_example_has_its_phi(version: int, block: int, windows: int) -> None:
    """Blocks 1 and 3 shift their windows. Which rows are whose is seen by running each example alone."""
    model, data = cola(encoders(version, text=4)), images(3)
    guide = Hypernetwork(model, gamma=4)
    own = model.blocks["image"][block]
    for path in (own.query, own.value, own.output, own.fc2):
        x, y = _layer_calls(model, guide, data, f"image.{path}")
        phi = guide.trace.nodes[f"cross.image.{path}"]["value"][:, 0]
        assert not torch.allclose(phi[0], phi[1])
        layer = adapted_layers(model.backbone)[f"image.{path}"]
        inter, count = layer.inter["text"], 1 if path == own.fc2 else windows
        assert x.shape[0] == 3 * count
        for example in range(3):
            alone, _ = _layer_calls(model, guide, data[example : example + 1], f"image.{path}")
            for window in range(count):
                row = x[example * count + window]
                # Other rows are about 1 away. Swin V2's sharp attention makes 1e-5 of a float's last bit.
                torch.testing.assert_close(row, alone[window], rtol=1e-4, atol=1e-4)
                delta = 0.5 * row @ layer.lora_A.T @ layer.lora_B.T
                delta = delta + inter.gain * (row @ inter.lora_A.T) @ phi[example].T @ inter.lora_B.T
                found = y[example * count + window] - layer.base_layer(row)
                torch.testing.assert_close(found, delta, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("version", [1, 2])
def test_descriptors_are_as_wide_as_their_block_and_pooled_over_all_windows(version: int) -> None:
    """With B = 0 the streams are those of the frozen Swin."""
    nets, data = encoders(version), images()
    swin_net, seen = nets["image"], {}

    def note(path: str) -> Any:
        return lambda _m, x: seen.update({path: x[0].detach()})

    model = cola(nets, fill=False, **EVERY)
    paired = [model.blocks["image"][i] for i in (1, 3)]
    places = [(b.path, b.output, b.residual) for b in paired]
    handles = [swin_net.get_submodule(p).register_forward_pre_hook(note(p)) for ps in places for p in ps]
    with model.adapters_disabled():
        swin_net(PIXELS)
    for handle in handles:
        handle.remove()
    guide = Delta(model)
    with torch.no_grad():
        guide(data)
    for text, stages, width in zip(model.blocks["text"], places, (8, 16), strict=True):
        reads = [stages[0]] * 3 + [stages[1]] + [stages[2]] * 2
        for path, stage in zip(text.linears, reads, strict=True):
            site = next(s for s in model.sites if s.name == f"cross.text.{path}")
            found = guide.trace.nodes[site.name]["infer"]["site"].z[:, 0]
            assert model.descriptor_width(site) == found.shape[1] == width
            expected = torch.stack([part.reshape(-1, width).mean(0) for part in seen[stage].chunk(4)])
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert {model.descriptor_width(s) for s in model.sites if s.source == "text"} == {16}


@pytest.mark.parametrize(
    ("schedule", "read"),
    [("uniform", {"query"}), ("module", {"query", "fc1"}), ("progressive", {"query", "output", "fc1"})],
)
def test_the_width_is_that_of_the_stage_which_the_schedule_reads(schedule: str, read: set[str]) -> None:
    """A partner whose context is wider than its stream: only ``progressive`` reads it."""
    nets = nn.ModuleDict({"text": bert(1), "image": swin((1,))})
    attention = nets["text"].get_submodule("encoder.layer.0.attention")
    for name in ("query", "key", "value"):
        setattr(attention.self, name, nn.Linear(16, 24))
    attention.self.all_head_size, attention.self.attention_head_size = 24, 12
    attention.output.dense = nn.Linear(24, 16)
    model = cola(nets, schedule=schedule)
    block = model.blocks["image"][0]
    widths = {site.name: model.descriptor_width(site) for site in model.sites}
    assert widths[f"cross.image.{block.output}"] == (24 if "output" in read else 16)
    assert widths[f"cross.image.{block.query}"] == widths[f"cross.image.{block.fc1}"] == 16
    assert set(model.null_descriptor) == {"image-8", "text-16"} | ({"text-24"} if "output" in read else set())
    assert torch.isfinite(logits(Hypernetwork(model, gamma=4), images())).all()


@pytest.mark.parametrize("missing", ["image", "text"])
def test_a_missing_encoder_has_a_null_vector_for_each_width(missing: str) -> None:
    model, data = cola(encoders(), **EVERY), images()
    assert {name: tuple(null.shape) for name, null in model.null_descriptor.items()} == {
        "text-16": (16,),
        "image-8": (8,),
        "image-16": (16,),
    }
    with torch.no_grad():
        for null in [*model.null.values(), *model.null_descriptor.values()]:
            null.normal_()
    guide = Hypernetwork(model, gamma=4)
    left = {k: v for k, v in data.inputs.items() if not k.startswith(missing)}
    absent = logits(guide, Batch(left))
    sites = [s for s in model.sites if s.source == missing]
    for site in sites:
        null = model.null_descriptor[f"{missing}-{model.descriptor_width(site)}"]
        torch.testing.assert_close(guide.trace.nodes[site.name]["infer"]["site"].z[:, 0], null.detach().expand(4, -1))
    flagged = logits(guide, images(**{f"{missing}.present": torch.zeros(4)}))
    torch.testing.assert_close(absent, flagged, rtol=1e-5, atol=1e-6)
    some = logits(guide, images(**{f"{missing}.present": torch.tensor([1, 0, 1, 1])}))
    torch.testing.assert_close(some[1], absent[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(some[[0, 2, 3]], logits(guide, data)[[0, 2, 3]], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(some[0], absent[0])


@pytest.mark.parametrize("version", [1, 2])
def test_padding_up_to_whole_windows_is_refused_where_it_would_be_pooled(version: int) -> None:
    """A grid of 8 × 8 and windows of 3 × 3: attention sees 81 tokens."""
    data = images()
    model = cola(encoders(version, window=3), **EVERY)
    with refuses(DataError, "'image'", 81, 64, "schedule='module'"):
        logits(Hypernetwork(model, gamma=4), data)
    for schedule in ("module", "uniform"):
        model = cola(encoders(version, window=3), schedule=schedule, **EVERY)
        whole = logits(Hypernetwork(model, gamma=4), data)
        assert torch.isfinite(whole).all()


def test_one_padded_window_is_refused_as_well() -> None:
    """Swin V2 fixes its windows at construction: in a smaller image one window holds more than the image."""
    model = cola(encoders(version=2, window=4), **EVERY)
    with refuses(DataError, "'image'", 16, 9, "schedule='module'"):
        logits(Hypernetwork(model, gamma=4), images(pixels=torch.randn(4, 3, 6, 6)))


def test_what_depends_on_the_order_of_tokens_is_refused() -> None:
    with refuses(ConfigError, "'image'", "cls", "streams={'image': 'mean', ...}"):
        cola(encoders(), streams={"text": "cls", "image": "cls"}, **EVERY)
    model = cola(encoders(), streams={"text": "cls", "image": "mean"}, **EVERY)
    guide = Hypernetwork(model, gamma=4)
    assert torch.isfinite(logits(guide, images())).all()
    with refuses(ConfigError, "'image'", 16, "streams={'image': 'mean'}"):
        logits(guide, images(**{"image.token_mask": torch.ones(4, 64)}))
