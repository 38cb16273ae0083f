"""The methods of the study: the same two encoders and head, adapted or fused in different ways.

In every method the head is ``W₂ relu(W₁ [f_vision ; f_audio] + b₁) + b₂``, so that each can tell where both agree. For
events f is each encoder's mean over one segment; for masks f_vision is the patch's own and f_audio the mean over the
second. Adapters are in all six linear layers of every block of the encoders' upper halves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel
from bayes_adapters.adapters.targets import linear_size
from bayes_adapters.backbones.hidden_states import hidden_width
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Delta, Hypernetwork
from bayes_adapters.heads.two_layer import TwoLayerHead
from bayes_adapters.inference.handlers import KLMode
from bayes_adapters.modalities.blocks import describe_blocks
from bayes_adapters.models import CoLA, ConcatLoRA, Wander
from examples.av_events.events import SEGMENTS
from examples.av_events.task import Settings, Task, likelihood_of
from examples.studies.one_direction import listen_in

Pair = tuple[AdapterModel, AdapterGuide]


@dataclass(frozen=True)
class Parts:
    """What a method is built of.

    Args:
        task: what is asked.
        encoders: upper halves of ``vision`` and ``audio``; a method changes them in place.
        num_data: training examples.
        settings: see there.
    """

    task: Task
    encoders: nn.ModuleDict
    num_data: int
    settings: Settings

    @property
    def linears(self) -> list[str]:
        """Paths of the six linear layers of every block."""
        blocks = {name: describe_blocks(net) for name, net in self.encoders.items()}
        return [f"{name}.{path}" for name, own in blocks.items() for block in own for path in block.linears]

    @property
    def common(self) -> dict[str, Any]:
        """What all models are told."""
        vision: Any = self.encoders["vision"]
        grid = vision.config.image_size // vision.config.patch_size
        segments: dict[str, Any] = {"dense": SEGMENTS, "separate": True}
        return {
            "backbone": self.encoders,
            "likelihood": likelihood_of(self.task, grid, self.settings.detail),
            "head": TwoLayerHead(self.settings.head),
        } | (segments if self.task is Task.EVENTS else {"dense": "vision", "prefix_tokens": 1})


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        build: parts → model and guide.
        random: whether draws differ; the ELBO then has a KL.
    """

    build: Callable[[Parts], Pair]
    random: bool = False

    def training(self, settings: Settings) -> dict[str, Any]:
        """Return the options of :func:`bayes_adapters.training.fit` that are the method's own."""
        if not self.random:
            return {"kl_weight": 0.0, "num_samples": 1}
        return {"kl_weight": settings.kl_weight, "kl_mode": KLMode.PER_TOKEN_MEAN, "num_samples": settings.samples}


def hypernetwork_size(width: int, gamma: int, rank: int) -> int:
    """Return the trained numbers of one point-mass hypernetwork, as CoLA's paper has it.

    ``(d h + h) + 2 h + (h r² + r²) + 2 r²`` with h = d / γ: down, a layer norm, up, a layer norm.

    >>> hypernetwork_size(768, 16, 16)
    50064
    """
    hidden = width // gamma
    return (width * hidden + hidden) + 2 * hidden + (hidden + 1) * rank**2 + 2 * rank**2


def cola_size(parts: Parts) -> int:
    """Return the numbers that CoLA trains in its adapters and hypernetworks: ``2 r (d_i + d_o) + 1 + hyper`` a layer.

    Head, and the vectors of modalities that are missing, are not among them.
    """
    rank, gamma = parts.settings.rank, parts.settings.gamma
    widths = {name: hidden_width(net) for name, net in parts.encoders.items()}
    total = 0
    for path in parts.linears:
        name = path.partition(".")[0]
        other = next(width for source, width in widths.items() if source != name)
        total += 2 * rank * _per_rank(parts, path) + 1 + hypernetwork_size(other, gamma, rank)
    return total


def matched_rank(parts: Parts) -> int:
    """Return the rank at which plain LoRA in the same layers trains as many numbers as CoLA, to the nearest."""
    return max(1, round(cola_size(parts) / sum(_per_rank(parts, path) for path in parts.linears)))


def _per_rank(parts: Parts, path: str) -> int:
    return sum(linear_size(parts.encoders.get_submodule(path)))


def _concat(rank: Callable[[Parts], int] | None) -> Callable[[Parts], Pair]:
    def build(parts: Parts) -> Pair:
        options: dict[str, Any] = {"targets": None}
        if rank is not None:
            many = rank(parts)
            options = {"targets": parts.linears, "rank": many, "alpha": many / 2}
        model = ConcatLoRA(**parts.common, **options)
        return model, Delta(model)

    return build


def _cola(scale: str | None = None, into: str | None = None) -> Callable[[Parts], Pair]:
    def build(parts: Parts) -> Pair:
        own = parts.settings
        model = CoLA(**parts.common, rank=own.rank, alpha=own.rank / 2, gain=own.gain)
        guide = Hypernetwork(model, gamma=own.gamma, scale=scale)
        if into is not None:
            listen_in(into, model, guide)
        return model, guide

    return build


def _wander(parts: Parts) -> Pair:
    own = parts.settings
    model = Wander(
        **parts.common,
        num_data=parts.num_data,
        lengths=dict.fromkeys(parts.encoders, own.length),
        fusion_rank=own.fusion_rank,
        terms=own.terms,
        width=own.width,
    )
    return model, Delta(model)


METHODS: dict[str, Method] = {
    "late-fusion": Method(_concat(None)),
    "concat-lora": Method(_concat(lambda parts: parts.settings.rank)),
    "concat-lora-matched": Method(_concat(matched_rank)),
    "cola": Method(_cola()),
    "cola-into-vision": Method(_cola(into="vision")),
    "cola-into-audio": Method(_cola(into="audio")),
    "bayesian-cola": Method(_cola(scale="softplus"), random=True),
    "wander": Method(_wander),
}
"""Name → method. ``late-fusion`` trains the head alone, and its encoders stay as they are, as Wander's do."""


def build(method: str, task: Task, encoders: Mapping[str, nn.Module], num_data: int, settings: Settings) -> Pair:
    """Build a method on copies of the encoders.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    own = nn.ModuleDict({name: copy.deepcopy(net) for name, net in encoders.items()})
    return METHODS[method].build(Parts(task, own, num_data, settings))
