"""Scenes: little pictures put on a pale ground, with a box and a mask for each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from bayes_adapters.errors import ConfigError, DataError
from examples.grounding.pictures import COLOURS, Pictures, tinted

SIDE = 128
"""Height and width of a scene, in pixels."""
_GAP = 3  # pixels between boxes
_TRIES = 60
_SHRINK = 0.97  # of the sizes, after each try that found no room


@dataclass(frozen=True)
class Thing:
    """One picture in a scene.

    Args:
        kind: what it shows, a word.
        colour: of :data:`~examples.grounding.pictures.COLOURS` where it is tinted; None where it has its own colours.
        box: (x1, y1, x2, y2) of its mask, as shares of the scene's width and height: 0 ≤ x1 < x2 ≤ 1, y downwards.
        size: square root of the share of the scene that its mask covers.
    """

    kind: str
    colour: str | None
    box: tuple[float, float, float, float]
    size: float

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the middle of its box."""
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2


@dataclass(frozen=True)
class Scene:
    """One scene.

    Args:
        pixels: shape (3, S, S), uint8: red, green, blue.
        owner: shape (S, S), uint8: 0 where the ground is, k + 1 where ``things[k]`` is.
        things: what is in it; boxes do not touch.
    """

    pixels: np.ndarray
    owner: np.ndarray
    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Style:
    """How things are put into scenes.

    Args:
        side: S, height and width of a scene in pixels.
        least, most: the longer side of a picture in a scene, in pixels; less where there is no room.
        turn: pictures are turned by at most so many degrees.
        flip: half of the pictures are mirrored.
    """

    side: int = SIDE
    least: int = 20
    most: int = 44
    turn: float = 12.0
    flip: bool = True

    def __post_init__(self) -> None:
        if not 4 <= self.least <= self.most <= self.side // 2 or not 0 <= self.turn <= 180:
            raise ConfigError(
                f"least, most and side must be 4 ≤ least ≤ most ≤ side / 2 and turn 0 to 180 degrees; got {self}."
            )


def draw_kinds(rng: random.Random, kinds: Sequence[str]) -> list[tuple[str, str | None]]:
    """Draw what a scene is to hold: two or three of one kind, one or two of another, others; half are tinted.

    Args:
        rng: advances.
        kinds: words, at least four.

    Returns:
        4 to 7 pairs (kind, colour). Either all have a colour, or none.

    Raises:
        ConfigError: too few kinds.
    """
    if len(kinds) < 4:
        raise ConfigError(f"A scene needs at least 4 kinds to choose from; got {list(kinds)}.")
    first, second, *others = rng.sample(list(kinds), 4)
    chosen = [first] * rng.randint(2, 3) + [second] * rng.randint(1, 2) + others[: rng.randint(1, 2)]
    rng.shuffle(chosen)
    tint = rng.random() < 0.5
    return [(kind, rng.choice(list(COLOURS)) if tint else None) for kind in chosen]


def compose(
    rng: random.Random, pictures: Pictures, wanted: Sequence[tuple[str, str | None]], style: Style | None = None
) -> Scene:
    """Put the wanted pictures, of random size, turn and side, where there is room, on a pale shaded ground.

    Args:
        rng: advances.
        pictures: has one of each wanted kind.
        wanted: (kind, colour) of each thing.
        style: sizes.

    Raises:
        DataError: they do not fit.
    """
    style = Style() if style is None else style
    for attempt in range(_TRIES):
        drawn = [_drawn(rng, pictures.images[kind], colour, style, _SHRINK**attempt) for kind, colour in wanted]
        places = _places(rng, [image.size for image in drawn], style.side)
        if places is not None:
            return _scene(rng, wanted, drawn, places, style.side)
    raise DataError(
        f"{len(wanted)} pictures of {style.least} to {style.most} pixels found no room in a scene of {style.side}. "
        "Ask for fewer or smaller ones."
    )


def _drawn(rng: random.Random, image: Image.Image, colour: str | None, style: Style, shrink: float) -> Image.Image:
    factor = rng.randint(style.least, style.most) * shrink / max(image.size)
    if style.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.resize([max(2, round(side * factor)) for side in image.size], Image.Resampling.BILINEAR)
    image = image if colour is None else tinted(image, colour)
    edged = ImageOps.expand(image, 1)  # clear all round, so that a turned edge is smooth
    return edged.rotate(rng.uniform(-style.turn, style.turn), Image.Resampling.BILINEAR, expand=True)


def _places(rng: random.Random, sizes: Sequence[tuple[int, int]], side: int) -> list[tuple[int, int]] | None:
    """Return a free upper left corner for each, the largest placed first, or None where one finds none."""
    found: dict[int, tuple[int, int]] = {}
    taken: list[tuple[int, int, int, int]] = []
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i][0] * sizes[i][1]):
        width, height = sizes[number]
        for _ in range(_TRIES):
            x, y = rng.randint(0, side - width), rng.randint(0, side - height)
            box = (x - _GAP, y - _GAP, x + width + _GAP, y + height + _GAP)
            if all(box[0] >= b[2] or box[2] <= b[0] or box[1] >= b[3] or box[3] <= b[1] for b in taken):
                taken.append((x, y, x + width, y + height))
                found[number] = x, y
                break
        else:
            return None
    return [found[number] for number in range(len(sizes))]


def _scene(
    rng: random.Random,
    wanted: Sequence[tuple[str, str | None]],
    drawn: Sequence[Image.Image],
    places: Sequence[tuple[int, int]],
    side: int,
) -> Scene:
    page = ground(rng, side)
    owner = np.zeros((side, side), np.uint8)
    things = []
    for number, ((kind, colour), image, (x, y)) in enumerate(zip(wanted, drawn, places, strict=True), 1):
        page.paste(image, (x, y), image)
        opacity = np.asarray(image.getchannel("A"))
        solid = 2 * opacity.astype(int) > opacity.max()  # a thin line is nowhere opaque once it is small and turned
        owner[y : y + image.height, x : x + image.width][solid] = number
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        box = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
        shares = tuple(float(edge) / side for edge in box)
        things.append(Thing(kind, colour, shares, float(solid.sum()) ** 0.5 / side))  # type: ignore[arg-type]
    return Scene(np.asarray(page).transpose(2, 0, 1).copy(), owner, tuple(things))


def ground(rng: random.Random, side: int) -> Image.Image:
    """Return a page that goes from one pale colour to another, along a random direction."""
    first, second = (np.array([rng.randint(205, 255) for _ in range(3)], np.float64) for _ in range(2))
    across, down = rng.uniform(-1, 1), rng.uniform(-1, 1)
    step = np.linspace(-0.5, 0.5, side)
    share = (0.5 + 0.5 * (across * step[None] + down * step[:, None])).clip(0, 1)[..., None]
    return Image.fromarray((first * (1 - share) + second * share).round().astype(np.uint8), "RGB")
