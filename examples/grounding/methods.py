"""The compared methods, each with the same head, on the same frozen encoders, for one of four tasks.

A run is called ``method.task``. ``rec`` asks for the box alone and ``res`` for the mask alone: their batches lack the
other's targets, which then has no loss. ``both`` asks for both with fixed weights, ``learned`` with the weight of masks
trained (the scale of a box is trained anyway). All four have the same outputs.

``late-fusion`` adapts nothing: the head sees each patch of the frozen vision transformer beside the mean of the frozen
words. It is trained first, on tokens that are made once, and every method with adapters *starts from its head*: B is 0
at the start, so that it is late fusion then. ``late-fusion-longer`` starts from it too and trains as long as they do:
what they are better by than that, the adapters did. ``wander`` fuses behind frozen
encoders, as its paper does; it has the epochs of late fusion, and a head of its own, for it sees other features.

``concat-lora`` is LoRA in all six linear layers of every block of both encoders, which do not see each other;
``concat-lora-matched`` has the rank at which it trains as many numbers as CoLA. ``cola-from-text`` has its inter-modal
path in the vision transformer only, ``cola-from-vision`` in the text encoder only: λ of the other is fixed at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel
from bayes_adapters.adapters.targets import linear_size
from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Delta, Hypernetwork
from bayes_adapters.likelihoods import BoundingBox, Masks, Tasks
from bayes_adapters.modalities.blocks import blocks_of
from bayes_adapters.models import CoLA, ConcatLoRA, Wander
from examples.grounding.examples import BOX, MASK
from examples.grounding.heads import GroundingHead
from examples.studies.one_direction import listen_in

RANK, ALPHA = 8, 8.0
BOTTLENECK = 16
"""Hidden units of each hypernetwork: γ = 8 of the pictures' width, 24 of the words'."""
MASK_WEIGHT = 0.05
"""Of masks beside boxes, where it is fixed. A mask has 1,024 cells, and at some .1 nats for each they would be a
hundred nats beside a few of a box."""
DICE = 100.0
"""Weight of Dice, nats: about what the cells of a mask weigh together, as in the sum of both means that is usual."""
TASKS: dict[str, tuple[str, ...]] = {"rec": (BOX,), "res": (MASK,), "both": (BOX, MASK), "learned": (BOX, MASK)}
"""Task → what is asked."""


@dataclass(frozen=True)
class Parts:
    """What a method is built from.

    Args:
        encoders: ``vision`` and ``text``, frozen; changed in place.
        task: one of :data:`TASKS`.
        num_data: N, expressions of the training split.
        grid: (h, w), patches of a picture.
        side: S, height and width of a picture in pixels.
        hidden: of the head.
    """

    encoders: nn.ModuleDict
    task: str
    num_data: int
    grid: tuple[int, int] = (8, 8)
    side: int = 128
    hidden: int = 128

    def likelihood(self) -> Tasks:
        """Return box and mask: L1 with a learned scale for each example and coordinate, and GIoU; cells, and Dice."""
        box = BoundingBox("example", init_scale=0.1, giou_weight=2.0)
        mask = Masks(self.grid, (self.side, self.side), skip=1, detail=4, dice_weight=DICE)
        weights: Any = "learned" if self.task == "learned" else {MASK: MASK_WEIGHT}
        return Tasks({BOX: box, MASK: mask}, weights)

    def options(self) -> dict[str, Any]:
        """Options of every model: an output per token of ``vision``, and the head."""
        return {"dense": "vision", "head": GroundingHead(self.hidden, self.grid)}


Pair = tuple[AdapterModel, AdapterGuide]


def _late_fusion(parts: Parts) -> Pair:
    model = ConcatLoRA(parts.encoders, parts.likelihood(), targets=None, **parts.options())
    return model, Delta(model)


def _wander(parts: Parts) -> Pair:
    lengths = {"vision": 1 + parts.grid[0] * parts.grid[1], "text": 12}
    width = min(map(hidden_width, parts.encoders.values()))
    model = Wander(
        parts.encoders,
        parts.likelihood(),
        num_data=parts.num_data,
        lengths=lengths,
        width=width,
        **parts.options(),
    )
    return model, Delta(model)


def _concat(parts: Parts, matched: bool = False) -> Pair:
    targets = _linears(parts.encoders)
    rank = _matched_rank(parts.encoders) if matched else RANK
    model = ConcatLoRA(parts.encoders, parts.likelihood(), targets=targets, rank=rank, alpha=ALPHA, **parts.options())
    return model, Delta(model)


def _cola(parts: Parts, scale: str | None = None, into: str | None = None, **options: Any) -> Pair:
    options = {"rank": RANK, "alpha": ALPHA} | options
    model = CoLA(parts.encoders, parts.likelihood(), **options, **parts.options())
    guide = Hypernetwork(model, bottleneck=BOTTLENECK, scale=scale)
    if into is not None:
        listen_in(into, model, guide)
    return model, guide


def _linears(encoders: nn.ModuleDict) -> list[str]:
    return [f"{name}.{path}" for name, own in blocks_of(encoders).items() for block in own for path in block.linears]


def _matched_rank(encoders: nn.ModuleDict) -> int:
    """Return the rank at which plain LoRA trains about as many numbers as CoLA with its hypernetworks."""
    blocks, per_rank, cola = blocks_of(encoders), 0, 0
    widths = {name: hidden_width(module) for name, module in encoders.items()}
    for name, own in blocks.items():
        other = next(width for encoder, width in widths.items() if encoder != name)
        hyper = BOTTLENECK * (other + 3) + RANK**2 * (BOTTLENECK + 3)  # two layers, two layer norms
        for block in own:
            for path in block.linears:
                size = sum(linear_size(encoders.get_submodule(f"{name}.{path}")))
                per_rank += size
                cola += 2 * RANK * size + 1 + hyper
    return round(cola / per_rank)


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        build: makes model and guide.
        frozen: whether nothing inside an encoder changes, so that tokens are made once.
        random: whether draws differ; then the KL has a weight.
        warm: whether the head starts as late fusion's.
    """

    build: Callable[[Parts], Pair]
    frozen: bool = False
    random: bool = False
    warm: bool = True


FIRST = "late-fusion"
VARIANTS: Mapping[str, Method] = {
    FIRST: Method(_late_fusion, frozen=True, warm=False),
    "late-fusion-longer": Method(_late_fusion, frozen=True),
    "wander": Method(_wander, frozen=True, warm=False),
    "concat-lora": Method(_concat),
    "concat-lora-matched": Method(partial(_concat, matched=True)),
    "cola": Method(_cola),
    "bayesian-cola": Method(partial(_cola, scale="softplus"), random=True),
    "cola-uniform": Method(partial(_cola, schedule="uniform")),
    "cola-module": Method(partial(_cola, schedule="module")),
    "cola-from-text": Method(partial(_cola, into="vision")),
    "cola-from-vision": Method(partial(_cola, into="text")),
    "cola-share-A": Method(partial(_cola, share="A")),
    "cola-share-B": Method(partial(_cola, share="B")),
    "cola-share-all": Method(partial(_cola, share="all")),
}
"""Name → method, the published and their controls first, then CoLA's ablations."""
ABLATIONS = tuple(name for name in VARIANTS if name.startswith("cola-"))
METHODS: tuple[str, ...] = tuple(
    f"{name}.{task}" for task in TASKS for name in VARIANTS if task == "both" or name not in ABLATIONS
)
"""The rows of the study: the ablations for both tasks with fixed weights, the others for every task."""


def find(name: str) -> tuple[Method, str]:
    """Return method and task of a row ``method.task``.

    Raises:
        ConfigError: there is no such row.
    """
    method, _, task = name.partition(".")
    if method not in VARIANTS or task not in TASKS:
        raise unknown_name("method", name, METHODS)
    return VARIANTS[method], task
