"""Measure a trained variant under its task's conditions, and once more with its gates closed."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor

from bayes_adapters import predict
from bayes_adapters.analysis.metrics import auc, decompose, nll
from bayes_adapters.analysis.records import Record, score
from examples.studies.body_signals.experiment import average
from examples.studies.wander.problems import Part, Problem
from examples.studies.wander.records import Result, Row
from examples.studies.wander.training import Fitted, closed, opened
from examples.studies.wander.variants import Variant


def probabilities(fitted: Fitted, part: Part) -> Float[Tensor, " N"]:
    """Return P(yes) of every example, float64, in the order of the part."""
    said = predict(fitted.model, fitted.guide, list(part.batches), num_samples=1)
    return said.probs.double()


def evaluate(
    problem: Problem, variant: Variant, fitted: Fitted, method: str, seed: int
) -> tuple[list[Result], list[Row]]:
    """Return a record a condition, averaged over those of one summary, and what was said under each."""
    facts = _facts(problem, variant, fitted)
    found: dict[str, list[Record]] = {}
    rows: list[Row] = []
    for condition in problem.conditions:
        part = problem.test(variant.encoded, condition)
        begun = time.perf_counter()
        probs = probabilities(fitted, part)
        seconds = time.perf_counter() - begun
        parts = decompose(probs[None])
        record = score(method, seed, "test", condition, probs, part.labels, parts, samples=1, seconds=seconds)
        found.setdefault(problem.summary(condition), []).append(record)
        columns = zip(part.names, part.labels.tolist(), probs.tolist(), strict=True)
        rows += [Row(method, seed, condition, *name, label, p) for name, label, p in columns]
    means = (replace(average(records), condition=name) for name, records in found.items())
    return [Result(**(asdict(record) | facts)) for record in means], rows


def _facts(problem: Problem, variant: Variant, fitted: Fitted) -> dict[str, Any]:
    gradients = {key: fitted.gradients.get(key, math.nan) for key in ("feature", "token", "down", "head")}
    depths = [key for key in fitted.gradients if key.startswith("feature.")]
    last = f"feature.{len(depths) - 1}"
    facts = gradients | {
        "parameters": float(fitted.parameters),
        "rate": fitted.rate,
        "validation_nll": fitted.validation_nll,
        "gate": opened(fitted),
        "step_seconds": fitted.step_seconds,
        "gate_gradient": fitted.gradients.get("gate", math.nan),
        "depth_ratio": fitted.gradients["feature.0"] / fitted.gradients[last] if depths else math.nan,
    }
    if fitted.gates():
        part = problem.test(variant.encoded, problem.plain)
        with closed(fitted.model):
            probs = probabilities(fitted, part)
        facts |= {"closed_auc": auc(probs, part.labels), "closed_nll": nll(probs, part.labels)}
    return facts
