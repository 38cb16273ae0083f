"""Train one method with one seed, and measure it on test utterances and on inputs from elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bayes_adapters import AdapterGuide, AdapterModel, predict
from bayes_adapters.analysis.metrics import Decomposition, decompose
from bayes_adapters.analysis.records import Record, score
from bayes_adapters.errors import DataError
from bayes_adapters.training import fit
from examples.studies.length_batches import LengthBatches
from examples.studies.meld.data import SENTIMENTS, Utterance, Utterances
from examples.studies.meld.frozen import features, frozen_probs
from examples.studies.meld.methods import Build, Built, method
from examples.studies.meld.records import Result, Row
from examples.studies.meld.task import Settings, Task
from examples.studies.rates import rise_and_decline

FROZEN = "frozen"
"""The control without adapters; see :mod:`examples.studies.meld.frozen`."""
CLEAN, OOD = "clean", "ood-prompts"
"""Conditions: MELD's test utterances, and the scripts of telephone prompts."""
_NEEDS_LABELS = ("accuracy", "auc", "nll", "brier", "ece", "auroc_error", "aurc", "auroc_error_epistemic")


@dataclass(frozen=True)
class Trained:
    """A trained method: its members, how long training took, and how many numbers were trained, of all members."""

    name: str
    seed: int
    members: list[Built]
    seconds: float
    histories: list[list[dict[str, float]]]
    parameters: int


def train(task: Task, name: str, seed: int, settings: Settings, checkpoint: Path | None = None) -> Trained:
    """Train every member of the method ``name``.

    Args:
        task: the data.
        name: one of :data:`examples.studies.meld.methods.METHODS`.
        seed: of initialisation, order and posterior draws; members of an ensemble add theirs.
        settings: shared by all methods.
        checkpoint: where to continue an interrupted run from, a folder a member; None keeps nothing.
    """
    chosen = method(name)
    return train_members(
        task, name, chosen.build, settings.members if chosen.ensemble else 1, seed, settings, checkpoint
    )


def train_members(
    task: Task,
    name: str,
    build: Callable[[Build], Built],
    count: int,
    seed: int,
    settings: Settings,
    checkpoint: Path | None = None,
) -> Trained:
    """Train ``count`` members that ``build`` makes; the rest as for :func:`train`."""
    started = time.perf_counter()
    members: list[Built] = []
    histories: list[list[dict[str, float]]] = []
    parameters = 0
    for number in range(count):
        folder = None if checkpoint is None else checkpoint / str(number)
        built, history, numbers = train_member(task, build, seed + 1000 * number, settings, folder)
        members.append(built)
        histories.append(history)
        parameters += numbers
    return Trained(name, seed, members, time.perf_counter() - started, histories, parameters)


def train_member(
    task: Task, build: Callable[[Build], Built], seed: int, settings: Settings, checkpoint: Path | None = None
) -> tuple[Built, list[dict[str, float]], int]:
    """Build and train one member.

    Returns:
        The member, the metrics of each epoch (``val_nll`` is on the dev utterances), and how many numbers were trained,
        those counted that pruning took out on the way.
    """
    fitted = fit_member(task, build, seed, settings, checkpoint)
    return fitted.finished(), fitted.history, fitted.parameters


@dataclass(frozen=True)
class Fitted:
    """A trained member, before what its method does after training.

    Args:
        built: the member.
        history: the metrics of each epoch.
        parameters: how many numbers were trained, those counted that pruning took out on the way.
        batches: the training utterances.
        dev: the dev utterances.
    """

    built: Built
    history: list[dict[str, float]]
    parameters: int
    batches: LengthBatches[Utterances]
    dev: LengthBatches[Utterances]

    def finished(self) -> Built:
        """Return the member to predict with."""
        model, guide, training = self.built
        if training.finish is None:
            return self.built
        return Built(*training.finish(model, guide, self.batches, self.dev), training)


def fit_member(
    task: Task,
    build: Callable[[Build], Built],
    seed: int,
    settings: Settings,
    checkpoint: Path | None = None,
    evaluate: Callable[[AdapterModel, AdapterGuide], Mapping[str, float]] | None = None,
) -> Fitted:
    """Build and train one member; nothing is trained where nothing can be.

    Args:
        task: the data.
        build: makes the member.
        seed: of the member.
        settings: shared by all methods.
        checkpoint: where to continue an interrupted run from; None keeps nothing.
        evaluate: what is also looked at after each epoch; see ``fit``.
    """
    torch.manual_seed(seed)
    batches = task.batches("train", settings, shuffle=True, seed=seed)
    steps = settings.epochs * len(batches)
    parts = Build(
        task.backbone(),
        num_data=len(task.train),
        steps=steps,
        rank=settings.rank,
        alpha=settings.alpha,
        prior_scale=settings.prior_scale,
        kl_weight=settings.kl_weight,
        seed=seed,
        targets=task.targets,
        head=task.head,
    )
    model, guide, training = build(parts)
    model.to(settings.device)
    guide.to(settings.device)
    numbers = sum(p.numel() for p in [*model.trainable_parameters().values(), *guide.parameters()])

    def adamw(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=training.lr or settings.lr, weight_decay=training.weight_decay)

    dev = task.batches("dev", settings)
    if not numbers:
        return Fitted(Built(model, guide, training), [], 0, batches, dev)
    if training.start is not None:
        training.start(model, guide, batches)
    result = fit(
        model,
        guide,
        batches,
        recipe=None,  # all methods alike, by the settings of the study
        epochs=settings.epochs,
        optimizer=adamw if training.optimizer is None else training.optimizer(model, guide),
        scheduler=rise_and_decline(steps, warm=20),
        kl_weight=training.kl_weight,
        num_particles=training.num_particles,
        clip_norm=1.0,
        validation=dev if settings.select else None,
        num_samples=settings.dev_samples if training.random else 1,
        seed=seed,
        checkpoint=checkpoint,
        on_step=training.on_step,
        evaluate=evaluate,
    )
    return Fitted(Built(model, guide, training), result.history, numbers, batches, dev)


def draws(trained: Trained, task: Task, part: str, settings: Settings) -> Tensor:
    """Return the class probabilities of every posterior draw of every member, shape (S, N, C), in the data's order."""
    batches = task.batches(part, settings)
    order = torch.tensor([i for batch in batches for i in batch.ids.tolist()]).argsort()
    found = []
    for number, (model, guide, training) in enumerate(trained.members):
        count = (training.samples or settings.samples) if training.random else 1
        seed = trained.seed + 1000 * number
        prediction = predict(
            model,
            guide,
            batches,
            num_samples=count,
            return_samples=True,
            seed=seed,
            linearised=training.linearised,
        )
        if prediction.samples is None:
            raise DataError("predict(return_samples=True) returned no draws.")
        found.append(prediction.samples.cpu()[:, order])
    return torch.cat(found)


def run(
    task: Task, name: str, seed: int, settings: Settings, checkpoint: Path | None = None
) -> tuple[list[Result], list[Row]]:
    """Train and measure one method with one seed: records and predictions of both conditions."""
    parts = {CLEAN: "test", OOD: "foreign"}
    started = time.perf_counter()
    if name == FROZEN:
        found, ranks, parameters = _frozen(task, settings), math.nan, math.nan
        seconds = time.perf_counter() - started
        timed = {condition: (probs, math.nan) for condition, probs in found.items()}
    else:
        trained = train(task, name, seed, settings, checkpoint)
        timed, seconds, parameters = {}, trained.seconds, trained.parameters
        for condition, part in parts.items():
            begun = time.perf_counter()
            probs = draws(trained, task, part, settings)
            timed[condition] = (probs, time.perf_counter() - begun)
        kept = [
            m.training.ranks_kept(m.model, m.guide) if m.training.ranks_kept else m.model.rank for m in trained.members
        ]
        ranks = sum(kept) / len(kept)
    results: list[Result] = []
    rows: list[Row] = []
    reference: Decomposition | None = None
    for condition, (probs, took) in timed.items():
        part = getattr(task, parts[condition])
        uncertainty = decompose(probs)
        mean = probs.double().mean(0)
        record = record_of(name, seed, condition, mean, len(probs), part.targets(), uncertainty, reference, took)
        counted = vars(record) | {"parameters": parameters, "ranks_kept": ranks, "train_seconds": seconds}
        results.append(Result(**counted))
        reference = uncertainty if condition == CLEAN else reference
        rows += rows_of(name, seed, condition, part.utterances, probs, uncertainty)
    return results, rows


def _frozen(task: Task, settings: Settings) -> dict[str, Tensor]:
    backbone = task.backbone().to(settings.device)
    names = ("train", "dev", "test", "foreign")
    x = {name: features(backbone, task.batches(name, settings), len(getattr(task, name))) for name in names}
    labelled = [(x[name], getattr(task, name).targets()) for name in ("train", "dev")]
    clean, foreign = frozen_probs(labelled[0], labelled[1], len(SENTIMENTS), x["test"], x["foreign"])
    return {CLEAN: clean[None], OOD: foreign[None]}


def record_of(
    name: str,
    seed: int,
    condition: str,
    probs: Tensor,
    samples: int,
    targets: Tensor,
    uncertainty: Decomposition,
    reference: Decomposition | None,
    seconds: float,
) -> Record:
    """Score the averaged probabilities (N, C); what needs labels is NaN where an utterance has none."""
    labelled = bool((targets >= 0).all())
    record = score(
        name,
        seed,
        "test",
        condition,
        probs,
        targets if labelled else torch.zeros_like(targets),
        uncertainty,
        reference=reference,
        samples=samples,
        seconds=seconds,
    )
    undefined: dict[str, Any] = dict.fromkeys(_NEEDS_LABELS, math.nan)
    return record if labelled else replace(record, **undefined)


def rows_of(
    name: str, seed: int, condition: str, said: Sequence[Utterance], probs: Tensor, uncertainty: Decomposition
) -> list[Row]:
    """Return what was said of every utterance; ``probs`` are those of the draws, (S, N, C)."""
    columns = zip(said, probs.double().mean(0).tolist(), *(part.tolist() for part in uncertainty), strict=True)
    return [
        Row(name, seed, condition, u.key, u.group, -1 if u.label is None else u.label, *p, *parts)
        for u, p, *parts in columns
    ]
