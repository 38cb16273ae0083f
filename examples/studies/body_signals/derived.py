"""Two further streams, computed from the five: variability of the heart's beats, and magnitude of motion.

They hold nothing that the blood volume pulse and the acceleration do not, so a method that reads all seven has more
streams and no more information: what changes with their number is the method.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from examples.studies.body_signals.data import MODALITIES, SECONDS, Signals

SHORTEST = 0.4
"""Seconds between two beats, at least: 150 a minute."""


def with_derived(signals: Signals) -> Signals:
    """Return the windows with the streams ``HRV`` (N, 30, 1) and ``MOTION`` (N, 960, 1) after the others.

    Args:
        signals: as loaded, before they are standardised.
    """
    own = {"HRV": variability(signals.values["BVP"]), "MOTION": signals.values["ACC"].norm(dim=-1, keepdim=True)}
    return replace(signals, values={**signals.values, **own})


def variability(pulse: Float[Tensor, "N S 1"]) -> Float[Tensor, "N 30 1"]:
    """Return ``|I_k − I_{k−1}|`` in seconds, I_k being the time from a beat to the next, held from second to second.

    A beat is the largest sample within ±0.2 s of a pulse that is smoothed over 0.14 s, if above the window's mean. What
    comes before a window's third beat takes its value; a window of fewer than three is 0.

    Args:
        pulse: blood volume pulse at 64 Hz, shape (N, samples, 1).

    >>> time = torch.arange(1920) / 64
    >>> regular = torch.sin(2 * torch.pi * time)[None, :, None]
    >>> bool((variability(regular) < 0.02).all()), variability(regular).shape
    (True, torch.Size([1, 30, 1]))
    """
    rate = MODALITIES["BVP"].rate
    smooth = F.avg_pool1d(pulse.mT, 9, stride=1, padding=4, count_include_pad=False)[:, 0]
    reach = int(SHORTEST / 2 * rate)
    largest = F.max_pool1d(smooth[:, None], 2 * reach + 1, stride=1, padding=reach)[:, 0]
    beats = (smooth == largest) & (smooth > smooth.mean(1, keepdim=True))
    out = pulse.new_zeros(len(pulse), SECONDS, 1)
    for row, own in enumerate(beats):
        times = own.nonzero().flatten().double() / rate
        changes = times.diff().diff().abs()
        if len(changes):
            ends = times[2:].contiguous()
            seconds = torch.arange(SECONDS, dtype=torch.float64)
            last = torch.searchsorted(ends, seconds, right=True) - 1
            out[row, :, 0] = changes[last.clamp_min(0)].float()
    return out
