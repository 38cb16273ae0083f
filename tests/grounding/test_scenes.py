"""Scenes and the data set, of made shapes: no network."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from bayes_adapters.errors import ConfigError, DataError
from examples.grounding import scenes
from examples.grounding.data import Grounding, Sizes, choose, make, splits
from examples.grounding.expressions import FORMS, parse, referent, referring
from examples.grounding.kinds import HELD_OUT, KINDS, SEEN
from examples.grounding.pictures import COLOURS, Pictures, shapes, tinted, trimmed
from examples.grounding.scenes import Style, compose, draw_kinds
from examples.grounding.sheet import sheet
from tests.refusals import refuses

SHAPES = shapes()
NAMES = sorted(SHAPES.images)


@pytest.fixture(scope="module")
def data() -> Grounding:
    return make(SHAPES, NAMES, 25, seed="a")


def test_kinds() -> None:
    assert len(set(KINDS.values())) == len(KINDS) == len(SEEN) + len(HELD_OUT)
    assert all(word.isalpha() and word.islower() for word in KINDS)
    assert not set(COLOURS) & set(KINDS)


def test_every_expression_means_its_target_and_nothing_else(data: Grounding) -> None:
    for row, text in enumerate(data.texts):
        things = data.things[data.scene[row]]
        target = int(data.target[row])
        assert referent(parse(text), things) == target
        alone = sum(thing.kind == things[target].kind for thing in things) == 1
        assert alone == (data.forms[row] == "kind"), text
    assert set(data.forms) == set(FORMS)
    for number in range(len(data.scenes)):
        texts = [text for text, scene in zip(data.texts, data.scene, strict=True) if scene == number]
        assert 1 <= len(texts) == len(set(texts)) <= 3


def test_boxes_are_those_of_the_masks(data: Grounding) -> None:
    rows = torch.arange(len(data))
    side = data.scenes.shape[-1]
    for mask, box in zip(data.masks(rows), data.boxes, strict=True):
        down, across = mask.any(1).nonzero(), mask.any(0).nonzero()
        expected = torch.stack([across[0], down[0], across[-1] + 1, down[-1] + 1]).flatten() / side
        torch.testing.assert_close(box, expected)
    boxes = data.boxes
    assert bool((boxes[:, :2] < boxes[:, 2:]).all() & (boxes >= 0).all() & (boxes <= 1).all())


def test_things_do_not_overlap_and_have_their_sizes(data: Grounding) -> None:
    for owner, things in zip(data.owner, data.things, strict=True):
        assert 4 <= len(things) <= 7
        assert len({thing.colour is None for thing in things}) == 1
        for number, thing in enumerate(things, 1):
            assert thing.size == pytest.approx(float((owner == number).sum()) ** 0.5 / owner.shape[-1])
        for a in things:
            for b in things:
                apart = a.box[2] <= b.box[0] or b.box[2] <= a.box[0] or a.box[3] <= b.box[1] or b.box[3] <= a.box[1]
                assert a is b or apart


def test_pixels_are_there_where_the_mask_is() -> None:
    scene = compose(random.Random(0), SHAPES, [("square", "red"), ("circle", "blue")], Style(turn=0.0))
    page = torch.from_numpy(scene.pixels).float()
    owner = torch.from_numpy(scene.owner)
    assert page[:, owner == 1].mean(1).argmax() == 0
    assert page[:, owner == 2].mean(1).argmax() == 2
    assert page[:, owner == 0].min() > 90  # pale, but for the edges' half-transparent pixels


def test_a_line_that_is_nowhere_opaque_has_a_box() -> None:
    line = Image.new("RGBA", (40, 40))
    ImageDraw.Draw(line).line((0, 0, 39, 39), fill=(0, 0, 0, 255))
    for number in range(20):
        rng = random.Random(number)
        scene = compose(rng, Pictures("lines", {"line": line}), [("line", None)], Style(32, 6, 8, turn=45.0))
        (thing,) = scene.things
        assert 0 < thing.size < 0.5
        assert (scene.owner == 1).any()


def test_the_same_seed_gives_the_same_data(data: Grounding) -> None:
    again, other = make(SHAPES, NAMES, 10, seed="a"), make(SHAPES, NAMES, 10, seed="b")
    assert torch.equal(again.scenes, data.scenes[:10])  # a scene depends on the seed and its number alone
    assert again.texts == data.texts[: len(again)]
    assert not torch.equal(again.scenes, other.scenes)


def test_examples(data: Grounding) -> None:
    examples = list(data)
    assert len(examples) == len(data)
    one = examples[3]
    assert one.text == data.texts[3]
    assert one.pixels.shape == (3, 128, 128)
    assert float(one.pixels.min()) >= -1
    assert float(one.pixels.max()) <= 1
    assert torch.equal(one.mask, data.masks(torch.tensor([3]))[0])
    some = data.of([3, 1])
    assert some.texts == (data.texts[3], data.texts[1])
    assert torch.equal(some[0].box, one.box)


def test_splits() -> None:
    """Eight made kinds, four of them held out; the other drawer's are turned upside down."""
    twice = {**SHAPES.images, **{f"{name}s": image.rotate(90) for name, image in SHAPES.images.items()}}
    drawn = {
        "twitter": Pictures("a", twice),
        "google": Pictures("b", {name: image.rotate(180) for name, image in twice.items()}),
    }
    chosen = {"seen": sorted(twice)[:4], "held_out": sorted(twice)[4:8]}
    sizes = Sizes(4, 3, 2, 3, 2, each=2)
    made, again = (splits(seed, sizes, drawn=drawn, **chosen) for seed in (0, 1))
    assert {name: len(split.scenes) for name, split in made.items()} == {
        "train": 4, "validation": 3, "test": 2, "kinds": 3, "drawer": 2,
    }  # fmt: skip
    for name, split in made.items():
        shown = {thing.kind for things in split.things for thing in things}
        assert shown <= set(chosen["held_out" if name == "kinds" else "seen"])
        fixed = name in ("test", "kinds", "drawer")
        assert torch.equal(split.scenes, again[name].scenes) == fixed
    assert len({split.scenes[0].numpy().tobytes() for split in made.values()}) == 5


def test_choice_is_even_over_forms() -> None:
    rng = random.Random(0)
    pairs = [pair for number in range(8) for pair in referring(make(SHAPES, NAMES, 1, seed=number).things[0])]
    counted = dict.fromkeys(FORMS, 0)
    for _ in range(200):
        ((_, expression),) = choose(rng, pairs, 1)
        counted[expression.form] += 1
    assert min(counted.values()) > 15, counted  # 33 each, give or take 5


def test_tint() -> None:
    for name, colour in zip(NAMES, COLOURS, strict=False):
        image = tinted(SHAPES.images[name], colour)
        values = np.asarray(image)
        solid = values[..., 3] == 255
        assert np.abs(values[solid][:, :3].mean(0) - COLOURS[colour]).max() < 45
        assert np.array_equal(values[..., 3], np.asarray(SHAPES.images[name])[..., 3])


def test_sheet(data: Grounding) -> None:
    assert sheet(data, 3, columns=2).size[0] == 2 * 264


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "_TRIES", 2)
    with refuses(DataError, "unicorn", "shapes"):
        make(SHAPES, [*NAMES, "unicorn"], 1, seed=0)
    with refuses(ConfigError, 4, NAMES[:3]):
        draw_kinds(random.Random(0), NAMES[:3])
    with refuses(ConfigError, "count", 0):
        make(SHAPES, NAMES, 0, seed=0)
    with refuses(DataError, 20, 64):
        compose(random.Random(0), SHAPES, [("square", None)] * 20, Style(64, 30, 32))
    with refuses(ConfigError, "least"):
        Style(least=60)
    with refuses(DataError, "opaque"):
        trimmed(Image.new("RGBA", (4, 4)))
    with refuses(ConfigError, "['bar']"):
        splits(0, drawn={"twitter": SHAPES, "google": SHAPES}, seen=NAMES, held_out=["bar"])
    with refuses(ConfigError, "['google']"):
        splits(0, drawn={"twitter": SHAPES}, seen=NAMES, held_out=[])
