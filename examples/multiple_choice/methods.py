"""The compared methods: those of the study with few labels, above another backbone.

The knobs are the same; their values are those with the least NLL of the last state on dev utterances, four tried for
each (``python -m examples.multiple_choice.tuning``). A row ``…-published`` has the value of its paper or of the ELBO.
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


def _searched(name: str, *values: float, published: float, chosen: float) -> dict[str, Tuned]:
    """Return the row of the chosen value and, where it is another, that of the published one."""
    tuned = Tuned(_tfb, "tolerance") if name == "tfb" else FEW[name]
    rows = {name: replace(tuned, values=values, chosen=chosen)}
    if published != chosen:
        rows[f"{name}-published"] = replace(tuned, values=(), chosen=published)
    return rows


METHODS: dict[str, Tuned] = {
    "frozen": FEW["frozen"],
    "lora": FEW["lora"],
    **_searched("mc-dropout", 0.1, 0.3, 0.6, 0.9, published=0.1, chosen=0.9),
    "ensemble": FEW["ensemble"],
    **_searched("blob", 0.1, 1.0, 10.0, 100.0, published=1.0, chosen=10.0),
    **_searched("scalabl", 1.0, 10.0, 100.0, 1000.0, published=1.0, chosen=10.0),
    **_searched("tfb", 0.05, 0.2, 0.8, 1.6, published=0.05, chosen=0.8),
    **_searched("c-lora", 0.1, 0.03, 0.01, 0.003, published=0.01, chosen=0.01),
    **_searched("bayeslora-2025", 0.15, 0.3, 0.6, 0.9, published=0.15, chosen=0.9),
    **_searched("bayeslora-2026", 0.03, 0.1, 0.3, 1.0, published=1.0, chosen=0.3),
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
