"""Gradient checkpointing in lock-step: a layer that runs again in backward finds at its taps what it found there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from bayes_adapters.modalities._tap_hooks import hooked, with_tensor
from bayes_adapters.modalities.taps import Tap


class _Pause(NamedTuple):
    """A module's tap, the generators as they were when it went on, and what replaced the tensor there, if anything."""

    module: nn.Module
    tap: Tap
    generator: Tensor
    devices: tuple[list[int], list[Tensor]]
    replacement: Tensor | None


class Pauses:
    """What the checkpointed modules of one :func:`bayes_adapters.modalities.lockstep.run` found at their taps.

    A checkpointed layer runs again in backward, on its own: the others are not there to exchange anything with, and
    have drawn random numbers in the middle of its own. Within :meth:`replayed` each tap brings back torch's generators
    as they were when the layer went on, and gives the replacement again, if there was one. What an exchange changes
    elsewhere has to be there again without it.
    """

    def __init__(self) -> None:
        self._noted: list[_Pause] = []

    def note(self, module: nn.Module, tap: Tap, tensor: Tensor, replacement: Tensor | None) -> None:
        """Note how ``module`` goes on from ``tap``, where it handed over ``tensor``: with a replacement, or None."""
        if replacement is not None:  # what it was computed from may be the very layer that runs again with it
            replacement = replacement.detach().requires_grad_(replacement.requires_grad)
        self._noted.append(_Pause(module, tap, torch.get_rng_state(), get_device_states(tensor), replacement))

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Within the context a layer that runs again finds at its taps what it found there."""
        with ExitStack() as stack:
            for pause in self._noted:
                stack.callback(hooked(pause.module, pause.tap, partial(_found_again, pause)).remove)
            yield


def _found_again(pause: _Pause, value: Any) -> Any:
    torch.set_rng_state(pause.generator)
    set_device_states(*pause.devices)
    return value if pause.replacement is None else with_tensor(value, pause.replacement)
