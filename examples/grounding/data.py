"""The data set: expressions over scenes, split by scenes, with kinds held out and another drawer's pictures."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from bayes_adapters.errors import ConfigError, DataError, whole_number
from examples.grounding.expressions import FORMS, Expression, referring
from examples.grounding.kinds import HELD_OUT, SEEN
from examples.grounding.pictures import Drawer, Pictures, emoji
from examples.grounding.scenes import Scene, Style, Thing, compose, draw_kinds

_TRIES = 200


class Referred(NamedTuple):
    """One example.

    Args:
        pixels: shape (3, S, S), float32, -1 to 1.
        text: the expression.
        box: shape (4,), float32: (x1, y1, x2, y2) as shares of width and height, y downwards.
        mask: shape (S, S), bool.
    """

    pixels: Float[Tensor, "3 S S"]
    text: str
    box: Float[Tensor, " 4"]
    mask: Bool[Tensor, "S S"]


@dataclass(frozen=True, eq=False)
class Grounding:
    """N referring expressions over M scenes.

    Args:
        scenes: shape (M, 3, S, S), uint8: red, green, blue.
        owner: shape (M, S, S), uint8: 0 where the ground is, k + 1 where thing k of the scene is.
        things: of each scene, what is in it.
        scene: shape (N,), int64: which scene an expression is about.
        target: shape (N,), int64: which thing of it is meant.
        expressions: N of them.
    """

    scenes: UInt8[Tensor, "M 3 S S"]
    owner: UInt8[Tensor, "M S S"]
    things: tuple[tuple[Thing, ...], ...]
    scene: Int[Tensor, " N"]
    target: Int[Tensor, " N"]
    expressions: tuple[Expression, ...]

    def __len__(self) -> int:
        return len(self.expressions)

    def __getitem__(self, row: int) -> Referred:
        rows = torch.tensor([range(len(self))[row]])  # an IndexError ends a loop over the data set
        return Referred(self.pixels(rows)[0], str(self.expressions[row]), self.boxes[rows[0]], self.masks(rows)[0])

    @property
    def texts(self) -> tuple[str, ...]:
        """The N expressions' words."""
        return tuple(map(str, self.expressions))

    @property
    def forms(self) -> tuple[str, ...]:
        """Of each expression, what its words go by: one of :data:`~examples.grounding.expressions.FORMS`."""
        return tuple(expression.form for expression in self.expressions)

    @property
    def boxes(self) -> Float[Tensor, "N 4"]:
        """Shape (N, 4), float32: (x1, y1, x2, y2) of the mask, as shares of width and height, y downwards."""
        pairs = zip(self.scene.tolist(), self.target.tolist(), strict=True)
        return torch.tensor([self.things[s][t].box for s, t in pairs]).reshape(-1, 4)

    def masks(self, rows: Int[Tensor, " B"]) -> Bool[Tensor, "B S S"]:
        """Return the pixels of the things that the expressions at ``rows`` mean, shape (B, S, S), bool."""
        return self.owner[self.scene[rows]] == (self.target[rows] + 1)[:, None, None]

    def pixels(self, rows: Int[Tensor, " B"]) -> Float[Tensor, "B 3 S S"]:
        """Return the pictures of the expressions at ``rows`` as the encoder takes them: float32, -1 to 1."""
        return as_input(self.scenes[self.scene[rows]])

    def of(self, rows: Sequence[int] | Tensor) -> Grounding:
        """Return the expressions at ``rows``, with all scenes."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        some = tuple(self.expressions[row] for row in chosen.tolist())
        return Grounding(self.scenes, self.owner, self.things, self.scene[chosen], self.target[chosen], some)


def as_input(scenes: UInt8[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Return ``scenes / 127.5 - 1``, float32."""
    return scenes.float() / 127.5 - 1


def make(
    pictures: Pictures,
    kinds: Sequence[str],
    count: int,
    seed: str | int,
    *,
    each: int = 3,
    style: Style | None = None,
) -> Grounding:
    """Make ``count`` scenes with at most ``each`` expressions each.

    The form of an expression is drawn first, evenly from those that the scene allows, then the target, then the words.
    No expression comes twice in a scene. A scene that allows none is drawn again.

    Args:
        pictures: at least one per kind.
        kinds: words, at least four.
        count: M.
        seed: scene m depends on ``seed`` and m alone.
        each: expressions per scene.
        style: sizes of scene and pictures.

    Raises:
        ConfigError: ``count`` or ``each`` is below 1, or there are fewer than four kinds.
        DataError: a kind has no picture, or scenes of this style allow no expression.

    >>> from examples.grounding.pictures import shapes
    >>> data = make(shapes(), sorted(shapes().images), 2, seed=0)
    >>> data.scenes.shape, data.boxes.shape, len(data) == len(data.texts) <= 6
    (torch.Size([2, 3, 128, 128]), torch.Size([6, 4]), True)
    """
    whole_number("count", count)
    whole_number("each", each)
    known = pictures.of(kinds)
    found: list[tuple[Scene, list[tuple[int, Expression]]]] = []
    for number in range(count):
        rng = random.Random(f"{seed}/{number}")
        found.append(_one(rng, known, each, style))
    scene = [number for number, (_, chosen) in enumerate(found) for _ in chosen]
    pairs = [pair for _, chosen in found for pair in chosen]
    return Grounding(
        torch.from_numpy(np.stack([one.pixels for one, _ in found])),
        torch.from_numpy(np.stack([one.owner for one, _ in found])),
        tuple(one.things for one, _ in found),
        torch.tensor(scene),
        torch.tensor([target for target, _ in pairs]),
        tuple(expression for _, expression in pairs),
    )


def _one(
    rng: random.Random, pictures: Pictures, each: int, style: Style | None
) -> tuple[Scene, list[tuple[int, Expression]]]:
    for _ in range(_TRIES):
        scene = compose(rng, pictures, draw_kinds(rng, list(pictures.images)), style)
        if chosen := choose(rng, referring(scene.things), each):
            return scene, chosen
    raise DataError(f"{_TRIES} scenes allowed no expression. Make them larger, or the pictures in them smaller.")


def choose(rng: random.Random, pairs: Sequence[tuple[int, Expression]], each: int) -> list[tuple[int, Expression]]:
    """Draw at most ``each`` of the pairs without repeats: a form, a target of that form, an expression."""
    left = list(pairs)
    chosen: list[tuple[int, Expression]] = []
    while left and len(chosen) < each:
        forms: dict[str, dict[int, list[Expression]]] = defaultdict(lambda: defaultdict(list))
        for target, expression in left:
            forms[expression.form][target].append(expression)
        targets = forms[rng.choice([form for form in FORMS if form in forms])]
        target = rng.choice(sorted(targets))
        pick = (target, rng.choice(targets[target]))
        chosen.append(pick)
        left.remove(pick)
    return chosen


@dataclass(frozen=True)
class Sizes:
    """Scenes of each split.

    Args:
        train, validation, test: of seen kinds, drawn by Twitter.
        kinds: of held-out kinds, drawn by Twitter.
        drawer: of seen kinds, drawn by Google.
        each: expressions per scene, at most.
    """

    train: int = 2000
    validation: int = 200
    test: int = 400
    kinds: int = 300
    drawer: int = 300
    each: int = 3


def splits(
    seed: int,
    sizes: Sizes | None = None,
    *,
    drawn: Mapping[str, Pictures] | None = None,
    seen: Sequence[str] = SEEN,
    held_out: Sequence[str] = HELD_OUT,
    style: Style | None = None,
) -> dict[str, Grounding]:
    """Make the five splits of a seed: train, validation, test, kinds (held out), drawer (another).

    Test splits do not depend on the seed, so that units are the same over seeds.

    Args:
        seed: of training and validation scenes.
        sizes: how many scenes.
        drawn: ``"twitter"`` and ``"google"`` → pictures; emoji when not given.
        seen: kinds of all splits but ``kinds``.
        held_out: kinds of ``kinds``.
        style: sizes of scene and pictures.

    Raises:
        ConfigError: a kind is both seen and held out, or a drawer is missing.
        MissingResourceError: the emoji are not here and cannot be fetched.
    """
    sizes = Sizes() if sizes is None else sizes
    if both := set(seen) & set(held_out):
        raise ConfigError(f"{sorted(both)} are both seen and held out. Name each kind once.")
    drawn = {drawer.value: emoji(drawer) for drawer in Drawer} if drawn is None else drawn
    if missing := [drawer.value for drawer in Drawer if drawer not in drawn]:
        raise ConfigError(f"drawn lacks {missing}; it has {sorted(drawn)}. Name pictures for both drawers.")
    plan: dict[str, tuple[Drawer, Sequence[str], str]] = {
        "train": (Drawer.TWITTER, seen, f"train/{seed}"),
        "validation": (Drawer.TWITTER, seen, f"validation/{seed}"),
        "test": (Drawer.TWITTER, seen, "test"),
        "kinds": (Drawer.TWITTER, held_out, "kinds"),
        "drawer": (Drawer.GOOGLE, seen, "drawer"),
    }
    return {
        split: make(drawn[drawer], words, getattr(sizes, split), start, each=sizes.each, style=style)
        for split, (drawer, words, start) in plan.items()
    }
