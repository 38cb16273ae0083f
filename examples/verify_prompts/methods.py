"""The compared methods: each a model and a guide on the same backbone, targets, rank and head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from bayes_adapters import AdapterGuide, AdapterModel, Bernoulli
from bayes_adapters.errors import unknown_name
from bayes_adapters.guides import Contextual, CrossAttention, Delta, PooledContext
from bayes_adapters.models import FusionLoRA, LoRA, StochasticCore
from bayes_adapters.reliability import Reliability

RANK, ALPHA, CONTEXT_DIM = 8, 16.0, 64


@dataclass(frozen=True)
class Build:
    """What a method is built from.

    Args:
        backbone: the frozen text encoder; changed in place.
        frame_width: d_a of the audio frames.
        prior_scale: β of the prior N(0, β²) on the cores.
        reliability: of guides that read frames, with the density of the training frames; None trusts every recording.
    """

    backbone: nn.Module
    frame_width: int
    prior_scale: float = 0.2
    reliability: Reliability | None = None

    def context(self) -> dict[str, Any]:
        """Options of the guides that read frames."""
        return {"context_dim": self.frame_width, "dim": CONTEXT_DIM, "reliability": self.reliability}


def _random_core(build: Build) -> StochasticCore:
    prior = dist.Normal(torch.tensor(0.0), torch.tensor(build.prior_scale))
    return StochasticCore(build.backbone, Bernoulli(), rank=RANK, alpha=ALPHA, prior=prior)


def _lora_text(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = LoRA(build.backbone, Bernoulli(), rank=RANK, alpha=ALPHA)
    return model, Delta(model)


def _lora_fusion(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = FusionLoRA(build.backbone, Bernoulli(), context_dim=build.frame_width, rank=RANK, alpha=ALPHA)
    return model, Delta(model)


def _c_lora(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, Contextual(model)


def _caliber_g(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, PooledContext(model, **build.context())


def _caliber_x(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, CrossAttention(model, **build.context())


def _caliber_shared_kv(build: Build) -> tuple[AdapterModel, AdapterGuide]:
    model = _random_core(build)
    return model, CrossAttention(model, share_kv=True, **build.context())


METHODS: dict[str, Callable[[Build], tuple[AdapterModel, AdapterGuide]]] = {
    "lora-text": _lora_text,
    "lora-fusion": _lora_fusion,
    "c-lora": _c_lora,
    "caliber-g": _caliber_g,
    "caliber-x": _caliber_x,
    "caliber-shared-kv": _caliber_shared_kv,
}

READS_FRAMES = frozenset({"caliber-g", "caliber-x", "caliber-shared-kv"})
"""Methods whose guide reads the audio's frames, and can weigh how far they are from the training frames."""

DETERMINISTIC = frozenset({"lora-text", "lora-fusion"})
"""Methods without random cores: one pass is all there is to average."""


def build(method: str, parts: Build) -> tuple[AdapterModel, AdapterGuide]:
    """Build ``method``'s model and guide.

    Raises:
        ConfigError: the method does not exist.
    """
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    return METHODS[method](parts)
