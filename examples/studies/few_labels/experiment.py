"""Train one method with one seed to the end, and measure it with and without a temperature."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from bayes_adapters import Prediction
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.analysis.metrics import Decomposition, decompose, nll
from bayes_adapters.analysis.records import Record
from examples.studies.few_labels.methods import method
from examples.studies.few_labels.task import FewLabels
from examples.studies.meld.data import Utterances
from examples.studies.meld.experiment import CLEAN, Trained, draws, record_of, train_members
from examples.studies.meld.records import Row
from examples.studies.meld.task import Settings

SETTINGS = Settings(train_size=200, dev_size=200, test_size=1000, epochs=25, select=False)
"""25 passes over 200 utterances; the last state is kept. The dev utterances are for the knob and the temperature."""
SCALED = "-temperature"
"""What a method is called after its temperature."""


@dataclass(frozen=True)
class Result(Record):
    """A record of this study.

    Args:
        train_accuracy: of the last state, on the training utterances.
        temperature: T fitted on the dev utterances, NaN without.
        train_seconds: wall-clock time of training, all members together.
    """

    train_accuracy: float = math.nan
    temperature: float = math.nan
    train_seconds: float = math.nan


def train(task: FewLabels, name: str, seed: int, settings: Settings, value: float | None = None) -> Trained:
    """Train a method with a value of its knob; None is the chosen one."""
    chosen = method(name)
    value = chosen.chosen if value is None else value
    members = settings.members if chosen.ensemble else 1
    return train_members(task, name, lambda parts: chosen.build(parts, value), members, seed, settings)


def dev_nll(task: FewLabels, name: str, seed: int, settings: Settings, value: float) -> float:
    """Return the NLL on the dev utterances with a value of the knob, nats."""
    trained = train(task, name, seed, settings, value)
    return nll(draws(trained, task, "dev", settings).double().mean(0), task.dev.targets())


def run(task: FewLabels, name: str, seed: int, settings: Settings = SETTINGS) -> tuple[list[Result], list[Row]]:
    """Train and measure one method with one seed: records and predictions of all conditions, each also scaled."""
    trained = train(task, name, seed, settings)
    fitted = answer(draws(trained, task, "train", settings))
    scaling = TemperatureScaling.fit(answer(draws(trained, task, "dev", settings)), task.dev.targets())
    facts: dict[str, Any] = {
        "parameters": trained.parameters,
        "train_seconds": trained.seconds,
        "train_accuracy": float((fitted.mean.argmax(-1) == task.train.targets()).double().mean()),
    }
    results: list[Result] = []
    rows: list[Row] = []
    reference: dict[str, Decomposition] = {}
    for condition in (CLEAN, *task.shifted):
        begun = time.perf_counter()
        said = answer(draws(trained, task, "test" if condition == CLEAN else condition, settings))
        took = time.perf_counter() - begun
        found, lines = scored(said, scaling, task.part(condition), name, seed, condition, took, reference)
        results += [replace(one, **facts) for one in found]
        rows += lines
        if condition == CLEAN:
            reference = {label: _parts(one) for label, one in ((name, said), (name + SCALED, scaling(said)))}
    return results, rows


def scored(
    said: Prediction,
    scaling: TemperatureScaling,
    part: Utterances,
    name: str,
    seed: int,
    condition: str,
    seconds: float,
    reference: Mapping[str, Decomposition],
) -> tuple[list[Result], list[Row]]:
    """Return the records and rows of a prediction: as it is, and after its temperature.

    Args:
        said: of the utterances of ``part``.
        scaling: fitted on dev utterances.
        part: the utterances.
        name: of the method.
        seed: of the run.
        condition: of the utterances.
        seconds: that the prediction took.
        reference: name, with and without the temperature → uncertainty under the condition that others are told from.
    """
    results: list[Result] = []
    rows: list[Row] = []
    for label, one, temperature in ((name, said, math.nan), (name + SCALED, scaling(said), scaling.temperature)):
        uncertainty, mean, targets = _parts(one), one.mean, part.targets()
        before = reference.get(label)
        record = record_of(label, seed, condition, mean, one.num_samples, targets, uncertainty, before, seconds)
        results.append(Result(**vars(record) | {"temperature": temperature}))
        columns = zip(part.utterances, mean.tolist(), *(v.tolist() for v in uncertainty), strict=True)
        rows += [
            Row(label, seed, condition, u.key, u.group, -1 if u.label is None else u.label, *p, *parts)
            for u, p, *parts in columns
        ]
    return results, rows


def _parts(said: Prediction) -> Decomposition:
    return Decomposition(said.total, said.aleatoric, said.epistemic)


def answer(samples: Tensor) -> Prediction:
    """Return the prediction of the class probabilities of S draws, (S, N, C)."""
    samples = samples.double()
    return Prediction(samples.mean(0), *decompose(samples), num_samples=len(samples), samples=samples)
