"""Train one method with one seed, and measure its last state and the one that dev utterances choose."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import Tensor

from bayes_adapters import AdapterGuide, AdapterModel, Batch, predict
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.analysis.metrics import nll
from bayes_adapters.errors import DataError
from bayes_adapters.guides import Delta
from examples.multiple_choice.methods import method
from examples.studies.few_labels.experiment import Result, answer, scored
from examples.studies.meld.experiment import CLEAN, Fitted, Trained, draws, fit_member
from examples.studies.meld.records import Row
from examples.studies.meld.task import Settings, Task

SETTINGS = Settings(train_size=200, dev_size=100, test_size=500, epochs=30, lr=1e-2, samples=8, select=False)
"""30 passes over 200 questions. The dev utterances are for the knobs, the epoch and the temperature."""
SELECTED = "selected"
"""Condition of the state that the dev utterances choose; the last state, the papers' regime, is ``clean``."""

HOT = 1000.0
"""A temperature that leaves nearly equal probabilities."""


@dataclass(frozen=True)
class Answered(Result):
    """A record of this study.

    Args:
        epoch: which state of the run it is, from 1, over members the mean; NaN where nothing is trained.
    """

    epoch: float = math.nan


class BestEpoch:
    """Keeps the state after the epoch with the least NLL on the dev utterances; a point guide has one draw.

    Args:
        dev: the dev utterances.
        samples: draws of a prediction.
        seed: of the draws.
    """

    def __init__(self, dev: Iterable[Batch], samples: int, seed: int) -> None:
        self._dev, self._samples, self._seed = dev, samples, seed
        self._least, self._epochs = math.inf, 0
        self._state: dict[str, Tensor] = {}
        self.epoch = math.nan

    def __call__(self, model: AdapterModel, guide: AdapterGuide) -> dict[str, float]:
        """Measure after an epoch."""
        samples = 1 if isinstance(guide, Delta) else self._samples
        density = predict(model, guide, self._dev, num_samples=samples, seed=self._seed).log_density
        if density is None:
            raise DataError("The dev utterances have no sentiments to measure a loss on.")
        self._epochs += 1
        value = -float(density.double().mean())
        if value < self._least:
            self._least, self.epoch = value, float(self._epochs)
            self._state = {name: tensor.clone() for name, tensor in _trained(model, guide).items()}
        return {"dev_nll": value}

    def restore(self, model: AdapterModel, guide: AdapterGuide) -> None:
        """Put the state in place."""
        for name, tensor in (_trained(model, guide) if self._state else {}).items():
            tensor.copy_(self._state[name])


def _trained(model: AdapterModel, guide: AdapterGuide) -> dict[str, Tensor]:
    own = {f"model.{name}": p.data for name, p in model.trainable_parameters().items()}
    return own | {f"guide.{name}": tensor for name, tensor in guide.state_dict().items()}


def run(task: Task, name: str, seed: int, settings: Settings = SETTINGS) -> tuple[list[Answered], list[Row]]:
    """Train a method once: records and predictions of the last state, then of the selected one, each also scaled."""
    chosen = method(name)
    begun = time.perf_counter()
    members: list[tuple[Fitted, BestEpoch]] = []
    for number in range(settings.members if chosen.ensemble else 1):
        own = seed + 1000 * number
        best = BestEpoch(task.batches("dev", settings), settings.dev_samples, own)
        members.append((fit_member(task, lambda p: chosen.build(p, chosen.chosen), own, settings, evaluate=best), best))
    took = time.perf_counter() - begun
    results: list[Answered] = []
    rows: list[Row] = []
    for condition in (CLEAN, SELECTED):
        epochs = [float(len(fitted.history)) or math.nan for fitted, _ in members]
        if condition == SELECTED:
            for fitted, best in members:
                best.restore(fitted.built.model, fitted.built.guide)
            epochs = [best.epoch for _, best in members]
        parameters = sum(fitted.parameters for fitted, _ in members)
        finished = [fitted.finished() for fitted, _ in members]
        state = Trained(name, seed, finished, took, [fitted.history for fitted, _ in members], parameters)
        found, lines = _measured(state, task, condition, settings)
        results += [Answered(**vars(one) | {"epoch": sum(epochs) / len(epochs)}) for one in found]
        rows += lines
    return results, rows


def _measured(trained: Trained, task: Task, condition: str, settings: Settings) -> tuple[list[Result], list[Row]]:
    fitted = answer(draws(trained, task, "train", settings))
    scaling = temperature_of(answer(draws(trained, task, "dev", settings)).mean, task.dev.targets())
    begun = time.perf_counter()
    said = answer(draws(trained, task, "test", settings))
    took = time.perf_counter() - begun
    found, rows = scored(said, scaling, task.test, trained.name, trained.seed, condition, took, {})
    right = float((fitted.mean.argmax(-1) == task.train.targets()).double().mean())
    count, seconds = trained.parameters, trained.seconds
    return [replace(one, parameters=count, train_seconds=seconds, train_accuracy=right) for one in found], rows


def temperature_of(probs: Tensor, targets: Tensor) -> TemperatureScaling:
    """Return the fitted temperature, or :data:`HOT` where equal probabilities are better than any finite one.

    The mean of log p_T(y) is concave in 1/T. Its slope at 0 is that of ``log p(y) − mean_c log p(c)``.

    Args:
        probs: of dev utterances, (N, C).
        targets: class numbers, (N,).

    >>> wrong = torch.tensor([[0.9, 0.1]] * 8 + [[0.4, 0.6]] * 4)
    >>> temperature_of(wrong, torch.tensor([1] * 8 + [0] * 4)).temperature
    1000.0
    """
    logs = probs.clamp_min(1e-12).log()
    slope = logs.gather(1, targets[:, None])[:, 0] - logs.mean(1)
    return TemperatureScaling(HOT) if float(slope.mean()) <= 0 else TemperatureScaling.fit(probs, targets)


def dev_nll(task: Task, name: str, seed: int, settings: Settings, value: float) -> float:
    """Return the NLL of the last state on the dev utterances with a value of the knob, nats."""
    fitted = fit_member(task, lambda parts: method(name).build(parts, value), seed, settings)
    trained = Trained(name, seed, [fitted.finished()], 0.0, [], fitted.parameters)
    return nll(draws(trained, task, "dev", settings).double().mean(0), task.dev.targets())
