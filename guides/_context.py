"""What context-conditioned guides share: finding a modality's frames in a call, and refusing wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayes_adapters.data.batch import Frames, find_frames
from bayes_adapters.guides._checks import check_reliability, require_frames
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
    seen = ("frames", modality, null_context)  # once a pass: it waits for the device
    call.memo.once(seen, "required", lambda: require_frames(frames, modality, null_context))
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
    check_reliability(reliability, context_dim, model)
    return reliability
