"""Train one method with one seed on the corpus, and measure it on texts of every kind."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bayes_adapters import AdapterGuide, AdapterModel, predict
from bayes_adapters.analysis.metrics import auroc
from bayes_adapters.analysis.records import Record
from bayes_adapters.surgery.ensemble import ensemble
from bayes_adapters.training import fit
from examples.generation.corpus import INSIDE
from examples.generation.methods import METHODS, Method, build
from examples.generation.states import States
from examples.studies.length_batches import LengthBatches
from examples.studies.rates import rise_and_decline

OUTSIDE = "outside"
"""The condition of all outside texts together."""


@dataclass(frozen=True)
class Settings:
    """What is the same for every method.

    Args:
        layers: how many have adapters, from the top.
        held_out: texts of the corpus that are measured, and outside texts of each kind.
        longest: tokens that are measured of a text.
        epochs: passes over the texts to learn; the last state is kept.
        batch_size: texts a step.
        lr: peak learning rate of AdamW, after a warm-up of 5 steps, then linear decay.
        rank, alpha: of the adapters.
        members: of the ensemble.
        samples: posterior draws of a prediction.
    """

    layers: int = 4
    held_out: int = 48
    longest: int = 10
    epochs: int = 4
    batch_size: int = 16
    lr: float = 5e-3
    rank: int = 8
    alpha: float = 16.0
    members: int = 3
    samples: int = 5


@dataclass(frozen=True)
class Task:
    """What one run reads.

    Args:
        train: texts to learn.
        parts: kind → texts to measure.
        top: makes the upper layers of the language model, anew for each member.
    """

    train: States
    parts: Mapping[str, States]
    top: Callable[[], nn.Module]


@dataclass(frozen=True)
class Result(Record):
    """A record of this study: of one kind of texts, each text counted once.

    ``nll``, ``total``, ``aleatoric`` and ``epistemic`` are nats per token, means over texts; ``auroc_ood`` and
    ``auroc_ood_total`` are of a text's mean epistemic and total, against held-out texts of the corpus.

    Args:
        auroc_ood_nll: the same of the NLL of the text itself, which no uncertainty of a model's own text has.
        tokens: mean number of tokens of a text.
        train_seconds: of all members.
    """

    auroc_ood_nll: float = math.nan
    tokens: float = math.nan
    train_seconds: float = math.nan


class Row(NamedTuple):
    """What a method said of one text: nats per token."""

    method: str
    seed: int
    kind: str
    key: str
    group: str
    tokens: int
    total: float
    epistemic: float
    nll: float


class Trained(NamedTuple):
    """A trained method as one model and guide, its draws, how many numbers were trained, and seconds of that."""

    model: AdapterModel
    guide: AdapterGuide
    samples: int
    parameters: int
    seconds: float


def train(task: Task, method: Method, seed: int, settings: Settings) -> Trained:
    """Train all members, to the end."""
    begun = time.perf_counter()
    members = [
        _member(task, method, seed + 1000 * number, settings)
        for number in range(settings.members if method.ensemble else 1)
    ]
    numbers = [p.numel() for m, g in members for p in (*m.trainable_parameters().values(), *g.parameters())]
    model, guide = ensemble(members) if method.ensemble else members[0]
    samples = settings.members if method.ensemble else settings.samples if method.random else 1
    seconds = time.perf_counter() - begun
    return Trained(model, guide, samples, sum(numbers) if method.trained else 0, seconds)


def _member(task: Task, method: Method, seed: int, settings: Settings) -> tuple[AdapterModel, AdapterGuide]:
    torch.manual_seed(seed)
    size = len(task.train)
    model, guide = build(method, task.top(), num_data=size, rank=settings.rank, alpha=settings.alpha)
    if not method.trained:
        return model, guide  # B is 0: the language model as it is
    batches = LengthBatches(task.train, settings.batch_size, length=task.train.length, shuffle=True, seed=seed)
    fit(
        model,
        guide,
        batches,
        recipe=None,  # all methods alike, by the settings of the study
        epochs=settings.epochs,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=settings.lr),
        scheduler=rise_and_decline(settings.epochs * len(batches), warm=5),
        kl_weight=method.kl_weight,
        clip_norm=1.0,
        seed=seed,
        progress=False,
    )
    return model, guide


def measure(task: Task, name: str, trained: Trained, seed: int, settings: Settings) -> tuple[list[Result], list[Row]]:
    """Measure a trained method on every kind of texts: records, that of all outside texts last, and rows."""
    said: dict[str, list[Row]] = {}
    seconds: dict[str, float] = {}
    for kind, states in task.parts.items():
        begun = time.perf_counter()
        said[kind] = _said(name, kind, states, trained, seed, settings)
        seconds[kind] = time.perf_counter() - begun
    outside = {kind: rows for kind, rows in said.items() if kind != INSIDE}
    together = said | {OUTSIDE: [row for rows in outside.values() for row in rows]}
    seconds[OUTSIDE] = sum(seconds[kind] for kind in outside)
    results = [_record(name, seed, kind, rows, said[INSIDE], trained, seconds[kind]) for kind, rows in together.items()]
    return results, [row for rows in said.values() for row in rows]


@torch.no_grad()
def _said(name: str, kind: str, states: States, trained: Trained, seed: int, settings: Settings) -> list[Row]:
    batches = LengthBatches(states, settings.batch_size, length=states.length)
    rows: dict[int, Row] = {}
    for batch in batches:
        found: Any = predict(trained.model, trained.guide, batch, num_samples=trained.samples, seed=seed)
        parts = found.averaged()
        columns = zip(
            batch.ids.tolist(),
            found.scored.sum(1).tolist(),
            parts.total.tolist(),
            parts.epistemic.tolist(),
            found.nll_per_token.tolist(),
            strict=True,
        )
        for row, *numbers in columns:
            text = states.texts[row]
            rows[row] = Row(name, seed, kind, text.key, text.group, *numbers)
    return [rows[row] for row in range(len(states))]


def _record(
    name: str, seed: int, kind: str, rows: Sequence[Row], inside: Sequence[Row], trained: Trained, seconds: float
) -> Result:
    def column(of: Sequence[Row], part: str) -> Tensor:
        return torch.tensor([getattr(row, part) for row in of], dtype=torch.float64)

    def told_apart(part: str) -> float:
        if kind == INSIDE:
            return math.nan
        outside = torch.tensor([True] * len(rows) + [False] * len(inside))
        return auroc(torch.cat([column(rows, part), column(inside, part)]), outside)

    means = {part: float(column(rows, part).mean()) for part in ("nll", "total", "epistemic", "tokens")}
    undefined = dict.fromkeys(("accuracy", "auc", "brier", "ece", "auroc_error", "aurc"), math.nan)
    return Result(
        method=name,
        seed=seed,
        split="test",
        condition=kind,
        n=len(rows),
        samples=trained.samples,
        seconds=seconds,
        auroc_ood=told_apart("epistemic"),
        auroc_ood_total=told_apart("total"),
        auroc_ood_nll=told_apart("nll"),
        aleatoric=means["total"] - means["epistemic"],
        parameters=trained.parameters,
        train_seconds=trained.seconds,
        **means,
        **undefined,
    )


def run(task: Task, name: str, seed: int, settings: Settings) -> tuple[list[Result], list[Row], Trained]:
    """Train and measure one method with one seed."""
    trained = train(task, METHODS[name], seed, settings)
    return *measure(task, name, trained, seed, settings), trained
