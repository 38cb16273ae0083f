"""What the matrix tries: tables of guides, models, systems, tasks, backbones and priors, and how each cell is built.

Guides, models and likelihoods of the library that are not named here are tried, too, with what their constructors need
from :data:`_SMALL`: a new one needs no edit of this file.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayes_adapters import (
    AdapterGuide,
    AdapterModel,
    Bernoulli,
    Categorical,
    Gaussian,
    Granularity,
    HeteroscedasticGaussian,
    Tagging,
    guides,
    models,
    registry,
    systems,
)
from bayes_adapters._options import parameters_of
from bayes_adapters.distributions import LogUniform
from bayes_adapters.likelihoods import Likelihood, NextToken, Tasks
from bayes_adapters.priors import identity_normal
from bayes_adapters.sites import Part
from bayes_adapters.systems.system import required
from examples.studies.tiny import BACKBONES, CONTEXT, SIZE, TOKENS, length

PAIR = "BERT + Whisper encoder"
RANK = 2


class Cell(NamedTuple):
    """One thing to try: the name of a table, of its row and of its column."""

    table: str
    row: str
    column: str


@dataclass(frozen=True)
class Trial:
    """A cell's backbone, targets, and how model and guide are built on that backbone."""

    backbone: str
    targets: Tensor
    build: Callable[[nn.Module], tuple[AdapterModel, AdapterGuide]]


def _targets(task: str, tokens: int = TOKENS) -> Tensor:
    if task == "Tagging":
        labels = torch.arange(SIZE * tokens).reshape(SIZE, tokens) % 3
        labels[:, 0] = -100
        return labels
    if task == "BoundingBox":  # a draw may reach out of the image
        return torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.3, 0.2, 0.4], [0.9, 0.9, 0.2, 0.2], [0.5, 0.4, 1.0, 0.1]])
    if task not in _NAMED_TASKS:
        return _drawn(TASKS[task]())
    return torch.tensor([0, 2, 1, 1]) if task == "Categorical" else torch.tensor([0.0, 1.0, 1.0, 0.0])


def _drawn(likelihood: Likelihood) -> Tensor:
    """Targets for a likelihood that is not named here: a draw of its own, so that they are in its support."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        tokens = (TOKENS,) if likelihood.per_token else ()
        drawn: Tensor = likelihood.distribution(torch.zeros(SIZE, *tokens, likelihood.num_outputs)).sample()
    return drawn


def _unlisted(kind: str, base: type, known: Collection[type]) -> Iterator[type]:
    """Yield the library's own classes of a kind that are not among ``known``, in the order of their names."""
    for name in registry.names(kind):
        cls = registry.find(kind, name)
        if cls not in known and issubclass(cls, base) and cls.__module__.startswith("bayes_adapters."):
            yield cls


def _needed(cls: type) -> dict[str, Any]:
    """Return what the constructor of a class that is not named here needs, as far as :data:`_SMALL` knows it."""
    wanted = {p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty}
    return {name: value for name, value in _SMALL.items() if name in wanted | required(cls)}


_SMALL: dict[str, Any] = {
    "context_dim": CONTEXT,
    "num_data": SIZE,
    "num_classes": 3,
    "num_outputs": 2,
    "num_labels": 2,
    "lengths": {"first": 2, "second": 2},
    "groups": 2,
    "grid": (2, 3),
    "size": (4, 6),
    "dim": 2,
}
"""Option that a constructor may need → a value that suits the tiny backbones."""
TASKS: dict[str, Callable[[], Likelihood]] = {
    "Bernoulli": Bernoulli,
    "Categorical": partial(Categorical, 3),
    "Gaussian": Gaussian,
    "HeteroscedasticGaussian": HeteroscedasticGaussian,
    "Tagging": partial(Tagging, 3),
}

_NAMED_TASKS = tuple(TASKS)
# Tasks holds others of this list, by names; tests/likelihoods trains it. NextToken needs a language model as its
# backbone; tests/language trains it.
for _cls in _unlisted("likelihood", Likelihood, [NextToken, Tasks, *(type(task()) for task in TASKS.values())]):
    TASKS[_cls.__name__] = partial(_cls, **_needed(_cls))

_N: dict[str, Any] = {"num_data": SIZE}
_FUSED: dict[str, Any] = {"context_dim": CONTEXT, "fusion_width": 4}
MODELS: dict[str, tuple[type[AdapterModel], dict[str, Any]]] = {
    "LoRA": (models.LoRA, {}),
    "FusionLoRA": (models.FusionLoRA, _FUSED),
    "FusionCore": (models.FusionCore, _FUSED),
    "StochasticCore token": (models.StochasticCore, {}),
    "StochasticCore sequence": (models.StochasticCore, {"granularity": "sequence"}),
    "StochasticCore global": (models.StochasticCore, {"granularity": "global", **_N}),
    "AdapterDropout token": (models.AdapterDropout, {}),
    "AdapterDropout sequence": (models.AdapterDropout, {"granularity": "sequence"}),
    "AdapterDropout global": (models.AdapterDropout, {"granularity": "global"}),
    "StochasticDown": (models.StochasticDown, _N),
    "DiagonalCore": (models.DiagonalCore, _N),
    "StochasticFactors": (models.StochasticFactors, _N),
    "ConcatLoRA": (models.ConcatLoRA, {}),
    "CoLA": (models.CoLA, {}),
    "Wander": (models.Wander, {"lengths": {"first": 2, "second": 2}, "fusion_rank": 2, "terms": 2, **_N}),
}
for _cls in _unlisted("model", AdapterModel, [cls for cls, _ in MODELS.values()]):
    MODELS[_cls.__name__] = (_cls, _needed(_cls) | (_N if "num_data" in parameters_of(_cls) else {}))
_READS: dict[str, Any] = {"context_dim": CONTEXT, "dim": 2}
GUIDES: dict[str, tuple[type[AdapterGuide], dict[str, Any]]] = {
    "Delta": (guides.Delta, {}),
    "MeanField": (guides.MeanField, {}),
    "LowRank": (guides.LowRank, {"covariance_rank": 2}),
    "Contextual": (guides.Contextual, {"width": 4}),
    "Amortised, projected": (guides.Amortised, {"context": "global_shared_heads", **_READS}),
    "PooledContext": (guides.PooledContext, _READS),
    "CrossAttention": (guides.CrossAttention, _READS),
    "CrossAttention, point": (guides.CrossAttention, {"scale": None, **_READS}),
    "CrossAttention, shared": (guides.CrossAttention, {"share_kv": True, **_READS}),
    "Hypernetwork": (guides.Hypernetwork, {"gamma": 2}),
    "Hypernetwork, Gaussian": (guides.Hypernetwork, {"gamma": 2, "scale": "softplus"}),
    "MCDropout": (guides.MCDropout, {}),
    "RankWise": (guides.RankWise, {}),
    "TrainingFree": (guides.TrainingFree, {}),
}
for _cls in _unlisted("guide", AdapterGuide, [cls for cls, _ in GUIDES.values()]):
    GUIDES[_cls.__name__] = (_cls, _needed(_cls))
_NATURAL = {
    "Hypernetwork": "CoLA",
    "Hypernetwork, Gaussian": "CoLA",
    "RankWise": "StochasticFactors",
    "TrainingFree": "StochasticDown",
    "LowRank": "StochasticCore global",
    "InputNoise": "BaLoRA",
}
_PRIORS: dict[str, Callable[[], Any]] = {
    "N(0, .2²)": lambda: dist.Normal(0.0, 0.2),
    "N(I, .2²)": lambda: identity_normal(RANK),
    "Laplace(0, .2)": lambda: dist.Laplace(0.0, 0.2),
    "StudentT(4, 0, .2)": lambda: dist.StudentT(4.0, 0.0, 0.2),
    "LogUniform": LogUniform,
    "LogNormal(0, .2)": lambda: dist.LogNormal(0.0, 0.2),
}
_SPREAD: dict[str, Any] = {"gamma": 2, "depths": "spread"}
_SYSTEM_OPTIONS: dict[str, dict[str, Any]] = {
    "lora-fusion": _FUSED,
    "caliber-x-fusion": {**_FUSED, "dim": 2},
    "cross-attention-fusion": {**_FUSED, "dim": 2},
    "cola": _SPREAD,
    "bayesian-cola": _SPREAD,
    "wander": MODELS["Wander"][1],
    "bayesian-wander": MODELS["Wander"][1],
} | dict.fromkeys(("coco-lora", "caliber-g", "caliber-x", "caliber-shared-kv", "cross-attention"), _READS)
_SEVERAL = ("concat-lora", "cola", "bayesian-cola", "wander", "bayesian-wander")
_FEW = ("lora", "bayeslora-2025", "bayeslora-2026", "blob", "scalabl", "c-lora", "caliber-x")
_PAIRS = (
    PAIR,
    "RoBERTa + ViT",
    "DistilBERT + wav2vec 2.0",
    "BERT + Swin",
    "Swin V2 + Whisper encoder",
    "wav2vec 2.0 + Swin V2",
    "GPT-2 + Llama",
)

_OF_REALS = tuple(name for name, (cls, _) in GUIDES.items() if any(part.real for part in cls.parts))

TABLES = {
    "Guides and models": (tuple(GUIDES), tuple(MODELS)),
    "Systems and tasks": (tuple(systems.names()), tuple(TASKS)),
    "Backbones and systems": (tuple(BACKBONES), (*_FEW, "lora, Tagging")),
    "Pairs of encoders and systems": (_PAIRS, _SEVERAL),
    "Guides and priors": (_OF_REALS, tuple(_PRIORS)),
}
ABOUT = {
    "Guides and models": "BERT, Bernoulli; models of several encoders: BERT and Whisper's.",
    "Systems and tasks": "BERT; systems of several encoders: BERT and Whisper's.",
    "Backbones and systems": "Bernoulli.",
    "Pairs of encoders and systems": "Bernoulli.",
    "Guides and priors": "StochasticCore, one draw per token where the guide serves that, else one per data set "
    "(RankWise: StochasticFactors; TrainingFree: StochasticDown; Hypernetwork: CoLA; InputNoise: BaLoRA).",
}


def cells() -> list[Cell]:
    """Return everything that is tried, in the order of the file."""
    return [Cell(t, row, column) for t, (rows, columns) in TABLES.items() for row in rows for column in columns]


def trial(cell: Cell) -> Trial:
    """Return what a cell stands for."""
    bernoulli = _targets("Bernoulli")
    if cell.table in ("Guides and models", "Guides and priors"):
        prior = _PRIORS[cell.column]() if cell.table == "Guides and priors" else None
        structure = cell.column if prior is None else _natural(cell.row)
        several = issubclass(MODELS[structure][0], models.ConcatLoRA)
        return Trial(PAIR if several else "BERT", bernoulli, partial(_pair, cell.row, structure, prior))
    system, _, task = cell.column.partition(", ")
    backbone, tokens = cell.row, TOKENS
    if cell.table == "Systems and tasks":
        system, task = cell.row, cell.column
        backbone = PAIR if system in _SEVERAL else "BERT"
    elif task == "Tagging":
        tokens = length(backbone)
    task = task or "Bernoulli"
    return Trial(backbone, _targets(task, tokens), partial(build_system, system, task=task))


def _natural(guide: str) -> str:
    """Return the structure on which a guide's priors are tried: one whose part and granularity it serves."""
    cls = GUIDES[guide][0]
    for structure, granularity, part in (
        ("StochasticCore token", Granularity.TOKEN, Part.CORE),
        ("StochasticCore sequence", Granularity.SEQUENCE, Part.CORE),
        ("StochasticCore global", Granularity.GLOBAL, Part.CORE),
        ("DiagonalCore", Granularity.GLOBAL, Part.DIAGONAL),
    ):
        if guide not in _NATURAL and granularity in cls.serves and part in cls.parts:
            return structure
    return _NATURAL.get(guide, "StochasticCore token")


def _pair(guide: str, structure: str, prior: Any, backbone: nn.Module) -> tuple[AdapterModel, AdapterGuide]:
    model_type, options = MODELS[structure]
    if prior is not None:
        options = options | {"prior": prior}
    model = model_type(backbone, Bernoulli(), **(_rank(structure) | options))
    guide_type, guide_options = GUIDES[guide]
    return model, guide_type(model, **guide_options)


def _rank(name: str) -> dict[str, Any]:
    """The adapters' rank, for a model or a system that has adapters."""
    return {} if "wander" in name.lower() else {"rank": RANK}


def build_system(system: str, backbone: nn.Module, task: str = "Bernoulli") -> tuple[AdapterModel, AdapterGuide]:
    """Build a published system at a size that suits the tiny backbones."""
    options = {**_rank(system), **_SYSTEM_OPTIONS.get(system, {})} | _N
    return systems.build(system, backbone, TASKS[task](), **options)
