"""What context-conditioned guides share: finding a modality's frames in a call, and refusing wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bayes_adapters.data.batch import Frames, find_frames
from bayes_adapters.distributions import base_distribution
from bayes_adapters.errors import ConfigError, DataError
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.reliability import Reliability
from bayes_adapters.sites import SiteCall


def frames_of(call: SiteCall, modality: str, context_dim: int, null_context: bool) -> Frames | None:
    """Return the call's frames of ``modality``, or None where the whole batch lacks them.

    Raises:
        ConfigError: the call has other modalities only.
        DataError: frames of another width; or context missing for the batch or an example while the guide has no null
            context to stand in for it.
    """
    frames = find_frames(call.context, modality, context_dim, "guide")
    if frames is None:
        if not null_context:
            raise DataError(
                f"The batch has no context {modality!r} and the guide was built with null_context=False. Pass "
                f"Batch(..., context={{{modality!r}: Frames(values, mask)}}), or build the guide with "
                "null_context=True."
            )
        return None
    if not null_context and not bool(frames.present.all()):
        rows = (~frames.present).nonzero().flatten().tolist()
        raise DataError(
            f"The context {modality!r} of rows {rows[:8]} is entirely masked and the guide was built with "
            "null_context=False. Drop these examples, or build the guide with null_context=True."
        )
    return frames


def as_reliability(
    reliability: Reliability | Mapping[str, Any] | None, context_dim: int, model: AdapterModel
) -> Reliability | None:
    """Accept a reliability, or the configuration of one whose density's tensors are about to be loaded.

    Raises:
        ConfigError: it is neither, its density is of another width, or a prior of the model is no Gaussian to fall
            back to.
    """
    if reliability is None:
        return None
    if isinstance(reliability, Mapping):
        reliability = Reliability.from_config(reliability)
    if not isinstance(reliability, Reliability):
        raise ConfigError(
            f"reliability must be a Reliability or None; got a {type(reliability).__name__}. Fit a density and pass "
            "reliability=Reliability(density)."
        )
    if reliability.density.context_dim != context_dim:
        raise ConfigError(
            f"The frame density is {reliability.density.context_dim} wide and the guide has context_dim={context_dim}. "
            "Fit it on frames of the same encoder."
        )
    for site in model.sites:
        prior = base_distribution(model.prior.of(site))
        if not isinstance(prior, torch.distributions.Normal):
            raise ConfigError(
                f"reliability= falls back to a Gaussian prior; the prior of {site.name!r} is {type(prior).__name__}. "
                "Take a Normal prior, or build the guide without reliability=."
            )
    return reliability
