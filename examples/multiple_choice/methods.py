"""The compared methods: those of the study with few labels, above another backbone.

The knobs are the same; their values are not. A linear head that learns is a place to fall back to, and the search with
few labels ended with posteriors that hardly adapt. Here nothing but the adapters learns, so that each method begins
with the value that its paper says, or that of the ELBO.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

from bayes_adapters import AdapterGuide, AdapterModel, Batch
from bayes_adapters.errors import unknown_name
from bayes_adapters.surgery.training_free import bayesianise
from examples.studies.few_labels.methods import METHODS as FEW
from examples.studies.few_labels.methods import Tuned
from examples.studies.meld.methods import Build, Built, Training

ANCHORS = 6
"""Batches of training utterances that TFB's search looks at, without their labels."""


def _with(name: str, chosen: float, *values: float) -> Tuned:
    return replace(FEW[name], values=values, chosen=chosen)


def _tfb(parts: Build, tolerance: float) -> Built:
    """Few anchors and draws of the search, which would take longer than training."""
    built = FEW["lora"].build(parts, 0.0)

    def finish(
        model: Any, guide: AdapterGuide, batches: Iterable[Batch], _dev: Iterable[Batch]
    ) -> tuple[AdapterModel, AdapterGuide]:
        anchors = islice(batches, ANCHORS)
        new, posterior, _ = bayesianise(model, guide, anchors, tolerance=tolerance, num_samples=4, seed=parts.seed)
        return new, posterior

    return built._replace(training=Training(finish=finish))


METHODS: dict[str, Tuned] = {
    "frozen": FEW["frozen"],
    "lora": FEW["lora"],
    "mc-dropout": _with("mc-dropout", 0.1, 0.1, 0.3, 0.6, 0.9),
    "ensemble": FEW["ensemble"],
    "blob": _with("blob", 1.0, 0.1, 1.0, 10.0, 100.0),
    "scalabl": _with("scalabl", 1.0, 1.0, 10.0, 100.0, 1000.0),
    "tfb": Tuned(_tfb, "tolerance", (0.05, 0.2, 0.8, 1.6), 0.05),
    "c-lora": _with("c-lora", 0.01, 0.1, 0.03, 0.01, 0.003),
    "bayeslora-2025": _with("bayeslora-2025", 0.15, 0.15, 0.3, 0.6, 0.9),
    "bayeslora-2026": _with("bayeslora-2026", 1.0, 0.03, 0.1, 0.3, 1.0),
}
"""Name → method: the order of the tables."""


def method(name: str) -> Tuned:
    """Return a method by name.

    Raises:
        ConfigError: it does not exist.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    return METHODS[name]
