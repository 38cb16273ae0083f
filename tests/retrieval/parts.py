"""Pairs of texts and recordings, and the two towers that embed them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bayes_adapters import AdapterModel, Batch
from bayes_adapters.likelihoods import Contrastive
from bayes_adapters.models import ConcatCore
from tests.helpers import fill_B
from tests.text_and_audio import batch, encoders


def pairs(size: int = 5, groups: Tensor | None = None, seed: int = 0) -> Batch:
    """Texts and recordings; every pair is its own group unless ``groups`` says otherwise."""
    return replace(batch(size, seed), targets=torch.arange(size) if groups is None else groups)


def side(data: Batch, name: str) -> Batch:
    """The inputs of one encoder only."""
    return replace(data, inputs={key: value for key, value in data.inputs.items() if key.startswith(f"{name}.")})


def towers(dim: int = 3, **options: Any) -> AdapterModel:
    """Both encoders with random cores, drawn once."""
    return fill_B(ConcatCore(encoders(1, 1), Contrastive(dim), num_data=50, rank=2, **options))
