"""Clouds of frames, densities fitted to them, guides that use these, and batches near and far."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from bayes_adapters import AdapterGuide, Batch, Frames
from bayes_adapters.guides import CrossAttention, PooledContext
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.reliability import FrameDensity, Reliability
from tests.helpers import CONTEXT, core_model, token_batch

D = 4
KINDS: dict[str, type[Any]] = {"cross_attention": CrossAttention, "pooled_context": PooledContext}


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def cloud(count: int, seed: int, width: int = D, shift: float = 0.0) -> Tensor:
    """Correlated frames with unequal variances."""
    mixing = torch.randn(width, width, generator=rng(99)) + torch.diag(torch.arange(1.0, width + 1))
    return torch.randn(count, width, generator=rng(seed)) @ mixing + shift


def contexts(count: int, seed: int, width: int = D, shift: float = 0.0, length: int = 6) -> Frames:
    values = cloud(count * length, seed, width, shift).reshape(count, length, width)
    lengths = torch.randint(1, length + 1, (count,), generator=rng(seed + 1))
    return Frames(values, torch.arange(length) < lengths[:, None])


def fitted(width: int = D, shifts: tuple[float, ...] = (0.0, 20.0), **options: Any) -> FrameDensity:
    groups = [cloud(400, k, width, shift) for k, shift in enumerate(shifts)]
    held_out = [contexts(200, 50 + k, width, shift) for k, shift in enumerate(shifts)]
    return FrameDensity.fit(groups, held_out, **options)


def gaussians() -> tuple[Any, Any]:
    r = rng(3)
    loc, scale = torch.randn(3, 2, 2, 2, generator=r), 0.1 + torch.rand(3, 2, 2, 2, generator=r)
    return dist.Normal(loc, scale).to_event(2), dist.Normal(torch.eye(2), torch.full((2, 2), 0.7)).to_event(2)


def guide_of(kind: str, model: AdapterModel | None = None, **options: Any) -> AdapterGuide:
    how = {name: options.pop(name) for name in ("density", "fallback", "scale") if name in options}
    reliability = Reliability(**({"density": fitted(CONTEXT, shifts=(0.0,)), "fallback": "prior"} | how))
    settings = {"context_dim": CONTEXT, "dim": 4, "reliability": reliability} | options
    return KINDS[kind](model or core_model(), **settings)


def heard(shift: float = 0.0, size: int = 5) -> Batch:
    """Tokens with audio from the training distribution, moved by ``shift``; row 2's is missing."""
    batch = token_batch(size)
    values = cloud(size * 9, 31, CONTEXT).reshape(size, 9, CONTEXT) + shift
    mask = torch.ones(size, 9, dtype=torch.bool)
    mask[2::3] = False
    return Batch(batch.inputs, batch.targets, {"audio": Frames(values, mask)})
