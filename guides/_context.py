"""What context-conditioned guides share: finding a modality's frames in a call, and refusing wrong ones."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin

from bayes_adapters.batch import Frames
from bayes_adapters.errors import ConfigError, DataError, near_matches
from bayes_adapters.handlers import base_distribution
from bayes_adapters.model import AdapterModel
from bayes_adapters.reliability import Fallback, FrameDensity, fall_back
from bayes_adapters.sites import CoreCall


def require_sizes(**sizes: int) -> None:
    """Raise :class:`ConfigError` for the first size that is below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ConfigError(f"{name} must be at least 1; got {value}.")


def frames_of(call: CoreCall, modality: str, context_dim: int, null_context: bool) -> Frames | None:
    """Return the call's frames of ``modality``, or None where the whole batch lacks them.

    Raises:
        DataError: frames of another width; or context missing for the batch or an example while the guide has no null
            context to stand in for it.
    """
    frames = call.context.get(modality)
    if frames is None:
        if call.context:
            given = sorted(call.context)
            raise ConfigError(
                f"The guide reads the modality {modality!r}; the batch has {given}.{near_matches(modality, given)}"
            )
        if not null_context:
            raise DataError(
                f"The batch has no context {modality!r} and the guide was built with null_context=False. Pass "
                f"Batch(..., context={{{modality!r}: Frames(values, mask)}}), or build the guide with "
                "null_context=True."
            )
        return None
    if frames.values.shape[-1] != context_dim:
        raise DataError(
            f"The context {modality!r} is {frames.values.shape[-1]} wide; the guide was built with "
            f"context_dim={context_dim}. Were the frames made by another encoder?"
        )
    if not null_context and not bool(frames.present.all()):
        rows = (~frames.present).nonzero().flatten().tolist()
        raise DataError(
            f"The context {modality!r} of rows {rows[:8]} is entirely masked and the guide was built with "
            "null_context=False. Drop these examples, or build the guide with null_context=True."
        )
    return frames


def as_density(
    reliability: FrameDensity | Mapping[str, int] | None, context_dim: int, model: AdapterModel
) -> FrameDensity | None:
    """Accept a fitted density, or the sizes of one whose tensors are about to be loaded.

    Raises:
        ConfigError: the density is of another width, or a prior of the model is no Gaussian to fall back to.
    """
    if reliability is None:
        return None
    density = FrameDensity(**reliability) if isinstance(reliability, Mapping) else reliability
    if density.context_dim != context_dim:
        raise ConfigError(
            f"The frame density is {density.context_dim} wide and the guide has context_dim={context_dim}. Fit it on "
            "frames of the same encoder."
        )
    for site in model.sites:
        prior = base_distribution(model.prior.core(site))
        if not isinstance(prior, torch.distributions.Normal):
            raise ConfigError(
                f"reliability= falls back to a Gaussian prior; the prior of {site.name!r} is {type(prior).__name__}. "
                "Take a Normal prior, or build the guide without reliability=."
            )
    return density


def weigh(
    posterior: TorchDistributionMixin,
    prior: TorchDistributionMixin,
    frames: Frames | None,
    reliability: FrameDensity | None,
    fallback: Fallback,
    fallback_scale: float | None,
    call: CoreCall,
) -> TorchDistributionMixin:
    """Return the posterior, fallen back as far as ``frames`` lie from the training contexts."""
    if reliability is None or frames is None:
        return posterior
    if "reliability" not in call.scratch:
        call.scratch["reliability"] = reliability(frames)
    return fall_back(posterior, prior, call.scratch["reliability"], fallback_scale, fallback)


def as_scale(fallback_scale: float | None, reliability: object | None) -> float | None:
    """Return ``fallback_scale``; raise :class:`ConfigError` if it is no scale, or nothing would ever use it."""
    if fallback_scale is None:
        return None
    if not 0 < fallback_scale < math.inf:
        raise ConfigError(
            f"fallback_scale is a standard deviation and must be positive and finite, or None; got {fallback_scale}."
        )
    if reliability is None:
        raise ConfigError(
            f"fallback_scale={fallback_scale:g} has an effect only with reliability=, a fitted FrameDensity. Pass "
            "one, or leave fallback_scale out."
        )
    return fallback_scale
