"""Settings of runs of script verification on a handful of prompts."""

from __future__ import annotations

from examples.studies.verify_prompts.dataset import MISSING
from examples.studies.verify_prompts.experiment import Settings

SETTINGS = Settings(
    epochs=1,
    batch_size=12,
    mix={"clean": 0.5, "white@0": 0.3, MISSING: 0.2},
    samples=3,
    conditions=("missing", "clean", "white@0", "ood-it"),
)
SIZES = {"train": 12, "validation": 11, "test": 7}
