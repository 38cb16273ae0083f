"""Little pictures with names: emoji of two drawers, or shapes made here."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bayes_adapters.errors import DataError, choice
from examples.grounding.kinds import HELD_OUT, KINDS
from examples.grounding.npm import Package, package_folder

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 39, 40),
    "yellow": (240, 196, 25),
    "green": (44, 160, 44),
    "blue": (31, 95, 214),
    "purple": (148, 60, 190),
}
"""Word → RGB, 0 to 255."""
_GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")


class Drawer(StrEnum):
    """Whose emoji."""

    TWITTER = "twitter"
    """Flat ones: training and test."""
    GOOGLE = "google"
    """The same things otherwise drawn, with shades and outlines: the shifted test."""


@dataclass(frozen=True)
class Pictures:
    """Pictures by name, each cut to what is to be seen of it.

    Args:
        source: who drew them.
        images: name → RGBA picture; its first and last row and column have an opaque pixel.
    """

    source: str
    images: Mapping[str, Image.Image]

    def of(self, names: Iterable[str]) -> Pictures:
        """Return those of ``names``, in that order.

        Raises:
            DataError: there is no picture of a name.
        """
        wanted = list(names)
        if missing := [name for name in wanted if name not in self.images]:
            raise DataError(f"{self.source} drew no {', '.join(missing)}; there are {', '.join(self.images)}.")
        return Pictures(self.source, {name: self.images[name] for name in wanted})


def emoji(drawer: Drawer | str) -> Pictures:
    """Return the drawer's picture of each of :data:`~examples.grounding.kinds.KINDS`, 64 pixels at most.

    Raises:
        MissingResourceError: they are not in the cache and cannot be fetched.
    """
    named = choice(Drawer, "drawer", drawer)
    folder = package_folder(PACKAGES[named])
    return Pictures(named, {word: _opened(folder / f"{code}.png") for word, code in KINDS.items()})


def unnamed() -> Pictures:
    """Return Twitter's pictures for pre-training, by code points: all animals, food, places and objects, ``SEEN`` too.

    Those of :data:`~examples.grounding.kinds.HELD_OUT` are left out.
    """
    folder = package_folder(PACKAGES[Drawer.TWITTER])
    held = {KINDS[word] for word in HELD_OUT}
    return Pictures("twitter", {p.stem: _opened(p) for p in sorted(folder.glob("*.png")) if p.stem not in held})


def shapes() -> Pictures:
    """Return six black shapes that need no network: for tests.

    >>> sorted(shapes().images)
    ['bar', 'circle', 'cross', 'ring', 'square', 'triangle']
    """
    drawn = {}
    for name in ("bar", "circle", "cross", "ring", "square", "triangle"):
        page = Image.new("RGBA", (64, 64))
        draw = ImageDraw.Draw(page)
        if name == "bar":
            draw.rectangle((2, 22, 61, 41), fill="#445566")
        elif name == "circle":
            draw.ellipse((2, 2, 61, 61), fill="#aa7733")
        elif name == "cross":
            draw.rectangle((22, 2, 41, 61), fill="#448844")
            draw.rectangle((2, 22, 61, 41), fill="#448844")
        elif name == "ring":
            draw.ellipse((8, 8, 55, 55), outline="#993355", width=12)
        elif name == "square":
            draw.rectangle((6, 6, 57, 57), fill="#3366aa")
        else:
            draw.polygon([(32, 2), (61, 60), (2, 60)], fill="#777711")
        drawn[name] = trimmed(page)
    return Pictures("shapes", drawn)


def trimmed(image: Image.Image) -> Image.Image:
    """Cut away rows and columns at the edge without a pixel that is at least half opaque.

    Raises:
        DataError: there is no such pixel.
    """
    solid = np.asarray(image.getchannel("A")) >= 128
    if not solid.any():
        raise DataError("The picture is empty: no pixel is at least half opaque.")
    rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
    return image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))


def tinted(image: Image.Image, colour: str) -> Image.Image:
    """Draw the picture in shades of one colour: dark to white as it was, with a mean brightness of a half.

    Brightness ``v`` of an opaque pixel becomes ``v^g`` with g such that their mean goes to 1/2; below 1/2 the colour is
    mixed with black, at most 80 %, above with white, at most 75 %.
    """
    values = np.asarray(image.convert("RGBA")).astype(np.float64) / 255
    alpha, light = values[..., 3], values[..., :3] @ np.array([0.299, 0.587, 0.114])
    mean = min(max(float((light * alpha).sum() / alpha.sum()), 0.02), 0.98)
    light = light ** (math.log(0.5) / math.log(mean))
    base = np.array(COLOURS[colour]) / 255
    dark, pale = 1 - 0.8 * (1 - 2 * light.clip(0, 0.5)), 0.75 * (2 * light.clip(0.5, 1) - 1)
    mixed = base * dark[..., None] * (1 - pale[..., None]) + pale[..., None]
    return Image.fromarray((np.dstack([mixed, alpha]) * 255).round().astype(np.uint8), "RGBA")


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return trimmed(image.convert("RGBA"))


def _keep(drawer: Drawer, archive: tarfile.TarFile, groups: tuple[str, ...]) -> dict[str, str]:
    """Return member → name of the pictures of 64 pixels that are of ``groups`` or named by an expression."""
    table = archive.extractfile("package/emoji.json")
    entries = json.load(table) if table is not None else []
    grouped = {e["image"] for e in entries if e["category"] in groups and e[f"has_img_{drawer}"]}
    wanted = sorted(grouped | {f"{code}.png" for code in KINDS.values()})
    return {f"package/img/{drawer}/64/{name}": name for name in wanted}


PACKAGES = {
    Drawer.TWITTER: Package(
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "2e01467fc40f5d3336323301e64f4b93fe036f0043a40d4ed2308286e7cb76bc",
        partial(_keep, Drawer.TWITTER, groups=_GROUPS),
    ),
    Drawer.GOOGLE: Package(
        "emoji-datasource-google",
        "14.0.0",
        "bc63bcfa95333a74790cba772dbf9d181616873556ea41902a246c215d7d72e2",
        "3817a23b0b5eb38bc679ae556b0cd915fdb237a2e4802055a262e0ce22fb86f6",
        partial(_keep, Drawer.GOOGLE, groups=()),
    ),
}
"""62 and 69 MB to fetch, of which 861 pictures (2.1 MB) and 113 (0.4 MB) are kept."""
