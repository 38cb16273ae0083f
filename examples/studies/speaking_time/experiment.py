"""Train one method with one seed, and measure it on unseen scripts and on texts of other kinds."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from bayes_adapters import AdapterGuide, AdapterModel, predict
from bayes_adapters.files import save
from bayes_adapters.guides import Delta
from bayes_adapters.models import StochasticFactors
from bayes_adapters.surgery.export import to_lora
from bayes_adapters.surgery.pruning import PruneRecord, PruneSchedule
from bayes_adapters.systems.recipes import Recipe
from bayes_adapters.training import fit
from examples.studies.speaking_time.data import Data, load, shortened
from examples.studies.speaking_time.intervals import spearman, variance_ratio
from examples.studies.speaking_time.records import TEST, Result, Row
from examples.studies.speaking_time.task import Measured, Task, by_length, line, log_seconds

LINE = "line"
"""The control without a network; see :func:`examples.studies.speaking_time.task.line`."""


@dataclass(frozen=True)
class Settings:
    """What is the same for every method.

    Args:
        epochs: passes over the 318 training scripts, 20 steps each.
        lr: learning rate of AdamW at its peak.
        lr_log_variance: of BayesLoRA (2026), for log-variances. Its paper's 1e-4 in 9999 steps is as far as 6e-3 in
            160.
        threshold: of BayesLoRA (2026), the score from which on a rank is taken out.
        draws: S, at test; None is the preset's.
        texts: of each kind that is not English prompts; None means all there are.
        rows: see :func:`examples.studies.speaking_time.data.shortened`; None takes everything.
    """

    epochs: int = 8
    lr: float = 2e-3
    lr_log_variance: float = 2e-2
    threshold: float = 4.0
    draws: int | None = None
    texts: int | None = None
    rows: int | None = None

    def task(self, data: Data | None = None) -> Task:
        """Return the task on ``data``, by default on what :func:`examples.studies.speaking_time.data.load` returns."""
        data = load() if data is None else data
        return Task.make(data if self.rows is None else shortened(data, self.rows))


QUICK = Settings(epochs=3, threshold=2.5, draws=2, texts=4, rows=96)
"""For tests: the same code, little learnt."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained model and guide.

    Args:
        model: trained.
        guide: its.
        parameters: how many numbers were trained, those counted that pruning took out on the way.
        draws: S, at test.
        seed: of the draws at test, see :func:`bayes_adapters.predict`.
        seconds: of processor time that training took.
        removals: what was pruned.
    """

    model: AdapterModel
    guide: AdapterGuide
    parameters: int
    draws: int
    seed: int | None
    seconds: float
    removals: list[PruneRecord] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        """Ranks left in all layers together."""
        return sum(self.model.ranks.values())


Train = Callable[[str, Task, Settings, int], dict[str, Trained]]
"""Method, task, settings, seed → what was trained under its name; a pruned method trains a control as well."""


def train(
    task: Task,
    model: AdapterModel,
    guide: AdapterGuide,
    recipe: Recipe,
    seed: int,
    *,
    draws: int | None = None,
    prune: Callable[[int], PruneSchedule] | None = None,
) -> Trained:
    """Train by a recipe, and keep the epoch with the lowest NLL of validation scripts.

    Args:
        task: the data.
        model: fresh.
        guide: its.
        recipe: see :class:`bayes_adapters.systems.recipes.Recipe`.
        seed: of order and draws.
        draws: S, at test; None is the recipe's. A plain LoRA has one.
        prune: number of steps → when ranks are taken out; None takes none.
    """
    started = time.process_time()
    rows = task.data.train
    parameters = sum(p.numel() for p in [*model.trainable_parameters().values(), *guide.parameters()])
    chosen = recipe.fit_options(model, guide, num_data=len(rows)) | {"num_samples": 2}
    schedule = None if prune is None else prune(chosen["max_steps"])
    batches, validation = task.batches(rows, recipe.batch_size, seed), task.held_out(task.data.validation)
    options: dict[str, Any] = {"validation": validation, "seed": seed, "progress": False, "on_step": schedule} | chosen
    fit(model, guide, batches, recipe=None, **options)  # ``chosen`` is all of the recipe that counts
    shown = 1 if isinstance(guide, Delta) else draws or recipe.num_samples
    seconds = time.process_time() - started
    return Trained(model, guide, parameters, shown, seed, seconds, [] if schedule is None else schedule.records)


def evaluate(task: Task, trained: Trained, name: str, seed: int, settings: Settings) -> tuple[list[Result], list[Row]]:
    """Measure a trained method on the test scripts and on the texts of every other kind."""
    started, clock = time.process_time(), time.perf_counter()
    options: dict[str, Any] = {"num_samples": trained.draws, "chunk_size": 10, "seed": trained.seed}
    torch.manual_seed(seed)
    found = task.measure(trained.model, trained.guide, task.data.test, **options)
    first, rows = score(task, found, name, seed)
    first = replace(first, seconds=time.perf_counter() - clock, samples=trained.draws)
    results = []
    for kind, texts in task.data.elsewhere.items():
        clock = time.perf_counter()
        chosen = sorted(texts[: settings.texts], key=len)
        away = predict(trained.model, trained.guide, task.texts(chosen), return_samples=True, **options)
        seconds, variance = time.perf_counter() - clock, task.variance(away)
        own = {"variance": float(variance.mean())}
        if first.variance > 0:
            own["variance_ratio"] = variance_ratio(variance, found.variance)
        results.append(_result(name, seed, kind, len(chosen), samples=trained.draws, seconds=seconds, **own))
        numbers = zip((away.mean.double() * task.spread + task.centre).tolist(), variance.tolist(), strict=True)
        for i, (text, (mean, spread)) in enumerate(zip(chosen, numbers, strict=True)):
            key = f"{kind}/{i}"
            rows.append(Row(name, seed, kind, key, key, len(text), math.nan, mean, spread, math.nan))
    spent = trained.seconds + time.process_time() - started
    more: dict[str, Any] = {"ranks": float(trained.ranks), "bytes": _bytes(trained.model, trained.guide)}
    more |= {"parameters": float(trained.parameters), "processor_seconds": spent}
    if isinstance(trained.model, StochasticFactors):
        more |= _export(task, trained)
    return [replace(first, **more), *results], rows


def score(task: Task, found: Measured, name: str, seed: int) -> tuple[Result, list[Row]]:
    """Return the record and the predictions of the test scripts."""
    test = by_length(task.data.test)
    numbers = (log_seconds(test), found.mean, found.variance, found.losses)
    columns = zip(test, *(values.tolist() for values in numbers), strict=True)
    rows = [Row(name, seed, TEST, r.key, r.script, len(r.text), *own) for r, *own in columns]
    length = torch.tensor([row.characters for row in rows], dtype=torch.float64)
    own = {"rmse": found.rmse, "nll": found.nll, "variance": float(found.variance.mean())}
    own |= {"spearman": spearman(found.variance, found.error.abs())}
    own |= {"spearman_length": spearman(length, found.variance)}
    return _result(name, seed, TEST, len(rows), **own), rows


def without_network(task: Task, seed: int) -> tuple[list[Result], list[Row]]:
    """Measure :data:`LINE`: the same with every seed."""
    started = time.process_time()
    result, rows = score(task, line(task.data), LINE, seed)
    return [replace(result, processor_seconds=time.process_time() - started)], rows


def run(
    task: Task,
    name: str,
    train: Train,
    settings: Settings,
    seed: int,
    keep: Callable[[str, Trained], None] | None = None,
) -> tuple[list[Result], list[Row]]:
    """Train and measure one method, and its control if it has one; ``keep`` is called with each name and its result.

    :data:`LINE` has neither seed nor network, and is not trained by ``train``.
    """
    if name == LINE:
        return without_network(task, seed)
    results: list[Result] = []
    rows: list[Row] = []
    for own, trained in train(name, task, settings, seed).items():
        found = evaluate(task, trained, own, seed, settings)
        results += found[0]
        rows += found[1]
        if keep is not None:
            keep(own, trained)
    return results, rows


def _result(name: str, seed: int, condition: str, n: int, **numbers: Any) -> Result:
    undefined = ("accuracy", "auc", "nll", "brier", "ece", "auroc_error", "auroc_ood", "aurc", "seconds")
    own: dict[str, Any] = dict.fromkeys(undefined, math.nan) | {"samples": 1} | numbers
    return Result(method=name, seed=seed, split="test", condition=condition, n=n, **own)


def _export(task: Task, trained: Trained) -> dict[str, float]:
    """Export to plain LoRA; its size, and how far its predictions are from the adapter's at its mean."""
    lora = to_lora(trained.model, trained.guide, task.copy())
    guide = Delta(lora)
    batches = task.held_out(task.data.test)
    before = predict(trained.model, trained.guide, batches, mean_only=True).mean
    after = predict(lora, guide, batches, num_samples=1).mean
    difference = float((before.double() - after.double()).abs().max()) * task.spread
    return {"export_bytes": _bytes(lora, guide), "export_difference": difference}


def _bytes(model: AdapterModel, guide: AdapterGuide) -> float:
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "adapter", model, guide)
        return float(sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()))
