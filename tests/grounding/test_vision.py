"""Pre-training and probing, of a tiny transformer on made shapes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import ImageOps

from bayes_adapters.data.boxes import to_corners
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.likelihoods import BoundingBox, Masks, Tasks
from examples.grounding.data import make
from examples.grounding.encoders import inputs, targets, text_frames
from examples.grounding.pictures import COLOURS, Pictures, shapes
from examples.grounding.pretrain import draw, outlines
from examples.grounding.probe import fit, patch_labels, probed
from examples.grounding.scenes import SIDE
from examples.grounding.vision import NO_NAME, VisionSettings, in_patches, places, pretrain, pretrained
from tests.refusals import refuses

TINY = VisionSettings(64, 16, width=32, layers=1, heads=2, steps=100, batch_size=6, lr=3e-3)
CODES = outlines(shapes(), 5)
SOURCE = partial(draw, pictures=shapes(), settings=TINY)


class Tokenizer:
    """Words by their length; padded with 0."""

    def __call__(self, texts: list[str], return_tensors: str, padding: bool) -> dict[str, torch.Tensor]:
        rows = [torch.tensor([len(word) for word in text.split()]) for text in texts]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}


class Backbone(torch.nn.Module):
    """States that are the words' lengths, twice; counts the rows it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> object:
        self.rows += len(input_ids)
        return type("Output", (), {"last_hidden_state": input_ids[..., None].float().expand(-1, -1, 2)})()


def test_batches_of_pictures() -> None:
    batch, again = SOURCE(3), SOURCE(3)
    assert batch.scenes.shape == (6, 3, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))
    assert not torch.equal(batch.scenes, SOURCE(4).scenes)
    assert set(batch.names.unique().tolist()) == set(range(7))
    assert batch.tints.max() <= len(COLOURS)
    assert bool(((batch.tints > 0) <= (batch.names > 0)).all())


def test_outlines() -> None:
    assert CODES.shape == (7, 5)
    assert not CODES[0].any()
    assert float(CODES[1:].square().mean()) == pytest.approx(1.0, abs=1e-4)
    mirrored = Pictures("mirrored", {name: ImageOps.mirror(image) for name, image in shapes().images.items()})
    torch.testing.assert_close(outlines(mirrored, 5).abs(), CODES.abs(), atol=1e-3, rtol=1e-3)
    assert float(torch.cdist(CODES[1:], CODES[1:]).add(torch.eye(6) * 9).min()) > 0.3  # no two look alike


def test_labels_of_patches() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[0, :2, :2], labels[0, 2, 2], labels[0, 4:, 4:] = 5, 3, 2
    labels[1, :4, :2], labels[1, :4, 2] = 4, 6
    expected = torch.tensor([[NO_NAME, 0, 0, 2], [4, 0, 0, 0]])
    assert torch.equal(in_patches(labels, 4), expected)  # 5/16 of two names, none of 30 %


def test_places() -> None:
    """Row 1, column 2 of three by three, with the frequencies 1 and 1/100."""
    expected = [f(angle) for at in (2.0, 1.0) for f in (math.sin, math.cos) for angle in (at, at / 100)]
    torch.testing.assert_close(places(3, 8)[5], torch.tensor(expected))
    started = TINY.transformer().embeddings.position_embeddings[0]
    torch.testing.assert_close(started[1:], 0.3 * places(4, 32))


def test_pretraining_learns_and_is_kept(tmp_path: Path) -> None:
    batch = SOURCE(0)
    vit, right = pretrain(lambda _: batch, CODES, 6, TINY)
    assert len(right) == 2
    assert right[0] < 0.7 < right[1]  # one batch, by heart: six shapes, so chance is a sixth
    assert not any(p.requires_grad for p in vit.parameters())
    assert not vit.training
    short = VisionSettings(64, 16, width=32, layers=1, heads=2, steps=2, batch_size=4)
    first = pretrained("shapes", SOURCE, CODES, 6, short, tmp_path)
    second = pretrained("shapes", _never, CODES, 6, short, tmp_path)
    pixels = torch.randn(2, 3, 64, 64)
    assert torch.equal(first(pixels).last_hidden_state, second(pixels).last_hidden_state)
    third, _ = pretrain(SOURCE, CODES, 6, short)
    assert torch.equal(first(pixels).last_hidden_state, third(pixels).last_hidden_state)  # the seed is all


def _never(step: int) -> None:
    raise AssertionError(step)


def test_probe() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(200, 3), torch.randint(3, (200,))
    x[torch.arange(200), y] += 6
    assert probed((x[:100], y[:100]), {"test": (x[100:], y[100:])}, 3)["test"] > 0.97
    weight = fit(x, y, 3, l2=1e-9)
    full = torch.cat([x, torch.ones(200, 1)], 1).double()
    expected = torch.linalg.lstsq(full, torch.nn.functional.one_hot(y, 3).double()).solution
    torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-6)
    with refuses(DataError, "none"):
        fit(x[:0], y[:0], 3)


def test_patches_of_a_data_set() -> None:
    names = sorted(shapes().images)
    data = make(shapes(), names, 3, seed=0)
    labels = patch_labels(data, lambda thing: names.index(thing.kind) + 1, SIDE // 8)
    assert labels.shape == (3, 64)
    for row, things in enumerate(data.things):
        shown = set(labels[row].tolist()) - {0, NO_NAME}
        assert shown <= {names.index(thing.kind) + 1 for thing in things}
        assert shown


def test_inputs_of_both_encoders() -> None:
    data = make(shapes(), sorted(shapes().images), 3, seed=0)
    rows = torch.tensor([0, 2])
    given, wanted = inputs(data, rows, Tokenizer()), targets(data, rows)
    assert {name: value.shape[0] for name, value in {**given, **wanted}.items()} == {
        "vision.pixel_values": 2, "text.input_ids": 2, "text.attention_mask": 2, "box": 2, "mask": 2,
    }  # fmt: skip
    assert torch.equal(given["vision.pixel_values"][1], data[2].pixels)
    assert torch.equal(wanted["mask"][1].bool(), data[2].mask)
    torch.testing.assert_close(to_corners(wanted["box"])[1], data[2].box)
    both = Tasks({"box": BoundingBox(), "mask": Masks((8, 8), (SIDE, SIDE))})
    both.accept(wanted)


def test_text_frames() -> None:
    backbone = Backbone()
    frames = text_frames(["a bc", "def", "a bc"], backbone, Tokenizer(), batch_size=1)
    assert frames.values[..., 0].tolist() == [[1, 2], [3, 0], [1, 2]]
    assert frames.mask.tolist() == [[True, True], [True, False], [True, True]]
    assert backbone.rows == 2  # the same text once


@pytest.mark.parametrize(("name", "value"), [("patch_size", 60), ("heads", 5), ("hidden", 0.0)])
def test_refusals(name: str, value: float) -> None:
    with refuses(ConfigError, name, value):
        VisionSettings(**{name: value})
