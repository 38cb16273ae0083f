"""What context-conditioned guides share: finding a modality's frames in a call, and refusing wrong ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from bayes_adapters.data.batch import Frames, find_frames
from bayes_adapters.data.contexts import module_key
from bayes_adapters.guides._checks import check_reliability, require_frames
from bayes_adapters.guides._context_checks import require_named
from bayes_adapters.inference.model import AdapterModel
from bayes_adapters.reliability import Reliability
from bayes_adapters.sites import SiteCall


def frames_of(
    call: SiteCall, modality: str, context_dim: int, null_context: bool, reads: Collection[str] = ()
) -> Frames | None:
    """Return the call's frames of ``modality``, or None where the whole batch lacks them.

    Raises:
        ConfigError: the call has other modalities only than those of ``reads``, which the guide reads.
        DataError: frames of another width; or context missing for the batch or an example while the guide has no null
            context to stand in for it.
    """
    frames = find_frames(call.context, modality, context_dim, "guide", reads)
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


def as_reliabilities(
    given: Reliability | Mapping[str, Any] | None, widths: Mapping[str, int], model: AdapterModel
) -> Reliability | nn.ModuleDict | None:
    """Accept the reliability of a guide's one context, bare or named, or modality → that of some of its several ones.

    Raises:
        ConfigError: as :func:`as_reliability`; or a modality is not read, or not named.
    """
    if given is None or not widths:
        return None
    if len(widths) == 1:
        name, width = next(iter(widths.items()))
        if isinstance(given, Mapping) and any(isinstance(one, Reliability) for one in given.values()):
            given = require_named(given, widths)[name]
        return as_reliability(given, width, model)
    named = require_named(given, widths)
    found = {name: as_reliability(named[name], widths[name], model) for name in widths if name in named}
    return nn.ModuleDict({module_key(name): one for name, one in found.items() if one is not None})
