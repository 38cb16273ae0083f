"""One method of one cell in one fold: its answers as they are, and under one temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bayes_adapters import Prediction, predict
from bayes_adapters.analysis.calibration import TemperatureScaling
from bayes_adapters.analysis.metrics import Decomposition
from bayes_adapters.analysis.records import Record, score
from examples.studies.verify_prompts.corpus import Corpus
from examples.studies.verify_prompts.experiment import Settings, Trained, evaluate, train, validation_batches
from examples.studies.verify_prompts.predictions import Prediction as Row

CONDITIONS = ("clean", "hard", "white@-5", "babble@-5", "missing", "ood-es", "ood-ru")
"""White noise and missing audio are in training, babble and other languages are not. Of four languages these have the
frames that are nearest to English ones, and furthest from them."""
METHODS = ("caliber-g", "caliber-x", "caliber-shared-kv", "cross-attention", "lora-fusion")
"""Of :data:`examples.studies.verify_prompts.methods.METHODS`."""
TEMPERATURE = "-temperature"
COLDEST, HOTTEST = 0.05, 100.0


def measure(corpus: Corpus, name: str, method: str, fold: int, settings: Settings) -> tuple[list[Record], list[Row]]:
    """Train and test a method; the fold's number is the seed too.

    Args:
        corpus: of the fold.
        name: what the method is called in records and rows; with :data:`TEMPERATURE` behind it where its answers are
            scaled by one temperature, fitted on the validation pairs, on the mean of as many draws as at test.
        method: one of :data:`METHODS`.
        fold: also the seed.
        settings: of all methods.
    """
    trained = train(corpus, method, fold, settings)
    records, rows = evaluate(corpus, trained, settings)
    records, rows = [replace(r, method=name) for r in records], [r._replace(method=name) for r in rows]
    scaled = tempered(rows, fitted(corpus, trained, settings), records[0].samples)
    return records + scored(scaled, records), rows + scaled


def fitted(corpus: Corpus, trained: Trained, settings: Settings) -> TemperatureScaling:
    """Return the temperature that fits the validation pairs best, under the conditions of training."""
    batches = validation_batches(corpus, settings)
    samples = settings.samples if trained.samples else 1
    found = predict(trained.model, trained.guide, batches, num_samples=samples, seed=trained.seed)
    return temperature_of(found.mean.cpu(), torch.cat([batch.targets for batch in batches]))


def temperature_of(probs: Tensor, labels: Tensor) -> TemperatureScaling:
    """Return the best temperature, or :data:`HOTTEST` or :data:`COLDEST` where there is none.

    With ``β = 1/T`` the mean log-likelihood is concave, and its slope at β = 0 is ``mean((y − ½) logit p)``. Where that
    is not positive no answer is better than a coin's, and none is colder where all answers are right.

    Args:
        probs: P(y = 1), shape (N,).
        labels: y, 0. or 1., shape (N,).
    """
    worth = (labels - 0.5) * torch.logit(probs.double(), eps=1e-7)
    if not float(worth.mean()) > 0:
        return TemperatureScaling(HOTTEST)
    if bool((worth > 0).all()):
        return TemperatureScaling(COLDEST)
    return TemperatureScaling.fit(probs, labels)


def tempered(rows: Sequence[Row], scaling: TemperatureScaling, samples: int) -> list[Row]:
    """Return rows with scaled answers; of the new entropy the epistemic part has the share that it had of the old."""
    probability, total, aleatoric, epistemic = torch.tensor([row[-4:] for row in rows], dtype=torch.float64).T
    found = scaling(Prediction(probability, total, aleatoric, epistemic, samples))
    columns = (found.mean, found.total, found.aleatoric, found.epistemic)
    return [
        row._replace(method=row.method + TEMPERATURE, probability=p, total=t, aleatoric=a, epistemic=e)
        for row, p, t, a, e in zip(rows, *(column.tolist() for column in columns), strict=True)
    ]


def scored(rows: Sequence[Row], records: Sequence[Record]) -> list[Record]:
    """Return the records of scaled rows, whose draws, seconds and parameters are those of ``records``."""
    found: list[Record] = []
    reference: Decomposition | None = None
    for old in records:  # clean ones first
        own = [row for row in rows if row.condition == old.condition]
        probability, *parts = torch.tensor([row[-4:] for row in own], dtype=torch.float64).T
        names = (own[0].method, old.seed, old.split, old.condition)
        labels, said = torch.tensor([row.label for row in own]), Decomposition(*parts)
        again = score(*names, probability, labels, said, reference=reference, samples=old.samples, seconds=old.seconds)
        found.append(replace(again, parameters=old.parameters))
        reference = reference or said
    return found
