"""Windows of people made here, small encoders for them, and records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from bayes_adapters.analysis.records import Record
from examples.studies.body_signals.data import MODALITIES
from examples.studies.body_signals.encoders import EncoderSettings
from examples.studies.body_signals.pretrain import PretrainSettings
from examples.studies.body_signals.task import Settings

SMALL = EncoderSettings(width=16, layers=1, heads=2, inner=16)
SETTINGS = Settings(PretrainSettings(SMALL, epochs=2, batch_size=16), validation=2)
PEOPLE, WINDOWS = 9, 12


def arrays() -> dict[str, np.ndarray]:
    """Windows in which stress raises conductance and heart rate, each person at a level of their own."""
    source = np.random.default_rng(0)
    people = np.repeat(np.arange(2, 2 + PEOPLE), WINDOWS)
    labels = np.tile((np.arange(WINDOWS) % 3 == 0).astype(np.int64), PEOPLE)
    out: dict[str, np.ndarray] = {"y": labels, "subject": people}
    for name, modality in MODALITIES.items():
        noise = source.normal(size=(len(labels), modality.samples, modality.channels))
        level = people[:, None, None] * 10.0 + source.normal(size=(len(labels), 1, 1))
        effect = {"EDA": 4.0, "HR": 1.0}.get(name, 0.0) * labels[:, None, None]
        out[name] = (noise + level + effect).astype(np.float32)
    return out


def record(condition: str = "all", **changes: Any) -> Record:
    return replace(Record("m", 0, "test", condition, 4, 0.5, 0.6, 0.6, 0.2, 0.1, 0.5, 0.5, 0.3, 1, 1.0), **changes)
