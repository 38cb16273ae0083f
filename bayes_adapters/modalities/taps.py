"""Where a module that runs in lock-step with others stops."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Side(StrEnum):
    """On which side of a submodule a tap sits."""

    INPUT = "input"
    """Its first argument."""
    OUTPUT = "output"
    """Its result."""


@dataclass(frozen=True)
class Tap:
    """A place where a module stops: it hands over one tensor and goes on with that tensor or another.

    The tensor is the first argument or the result of a submodule, or its first element where that is a tuple or list.
    A tap sits next to ``forward``: other pre-hooks run before an input tap, other forward hooks after an output tap.
    What the calling code has kept is not replaced: a residual connection still adds the tensor it was branched from.

    Args:
        step: the exchange's number. A module's steps increase in the order in which it reaches its taps; other modules
            stop at the same exchange by the same number.
        path: a path as in ``module.named_modules()``; ``""`` is the module itself.
        side: see :class:`Side`.
    """

    step: int
    path: str
    side: Side | str

    def __str__(self) -> str:
        return f"the {self.side} of {repr(self.path) if self.path else 'the module itself'} (step {self.step})"
