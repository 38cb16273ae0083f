"""Small runs of a Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from bayes_adapters import AdapterGuide, AdapterModel
from bayes_adapters.guides import Contextual
from tests.helpers import bert, core_model, token_batch

WHOLE = token_batch(22, seed=3)
"""Twenty-two examples: batches of four, the last of two, two at a step."""


def arguments(folder: Path | str, **options: Any) -> TrainingArguments:
    """Arguments of two epochs of three steps, at a constant learning rate, with a log of each."""
    quiet = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "log_level": "error", "logging_steps": 1}
    steps = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "num_train_epochs": 2}
    rate = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "seed": 7}
    return TrainingArguments(str(folder), **(quiet | steps | rate | {"eval_strategy": "epoch"} | options))


def pair(guide: Any = Contextual, **options: Any) -> tuple[AdapterModel, AdapterGuide]:
    """A model with dropout, and a guide: the same weights every time."""
    model = core_model(**{"rank": 2, "dropout": 0.2, "backbone": bert(1)} | options)
    torch.manual_seed(5)
    return model, guide(model)
