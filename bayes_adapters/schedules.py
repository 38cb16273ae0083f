"""Schedules of the KL weight: step → weight, as plain callables.

A schedule is called with the number of optimiser steps already taken (0, 1, …). A weight of 1 is the ELBO; anything
else tempers it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from bayes_adapters.errors import ConfigError, whole_number


@runtime_checkable
class KLSchedule(Protocol):
    """Anything that maps a step to a KL weight ≥ 0.

    >>> def warmed(step):
    ...     return min(1.0, step / 1000)
    >>> as_schedule(warmed)(250), as_schedule(0.5)(250)
    (0.25, 0.5)
    """

    def __call__(self, step: int) -> float:
        """Return the KL weight at ``step``."""
        ...


@dataclass(frozen=True)
class Constant:
    """``w(t) = weight``.

    >>> Constant(0.1)(step=7)
    0.1
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        _non_negative(self.weight)

    def __call__(self, step: int) -> float:
        return self.weight


@dataclass(frozen=True)
class LinearWarmup:
    """``w(t) = weight · min(1, (t + 1) / steps)``.

    >>> [LinearWarmup(steps=4)(t) for t in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """

    steps: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        _non_negative(self.weight)
        whole_number("steps", self.steps)

    def __call__(self, step: int) -> float:
        return self.weight * min(1.0, (step + 1) / self.steps)


@dataclass(frozen=True)
class Cyclic:
    """A linear ramp over the first ``ramp`` of each period, then ``weight`` to its end.

    Source: Fu et al. 2019, arXiv 1903.10145.

    >>> [Cyclic(period=4, ramp=0.5)(t) for t in range(6)]
    [0.5, 1.0, 1.0, 1.0, 0.5, 1.0]
    """

    period: int
    ramp: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        _non_negative(self.weight)
        whole_number("period", self.period)
        if not isinstance(self.ramp, int | float) or not 0.0 < self.ramp <= 1.0:
            raise ConfigError(f"ramp is the share of a period spent rising, in (0, 1]; got {self.ramp!r}.")

    def __call__(self, step: int) -> float:
        position = (step % self.period + 1) / self.period
        return self.weight * min(1.0, position / self.ramp)


@dataclass(frozen=True)
class Blundell:
    """``π_i = 2^i / (2^{M+1} − 1)``, i = step mod M (M when 0), steps counted from 1: BLoB's and C-LoRA's schedule.

    Over a window of M steps the weights sum to 1 up to 2^-M; the last ten hold 99.9 % and the last one half. It is the
    reverse of Blundell et al. 2015 (arXiv 1505.05424), eq. 9, as the released code of BLoB has it.

    >>> round(Blundell(316)(315), 6), round(sum(Blundell(316)(t) for t in range(306, 316)), 7)
    (0.5, 0.9990234)
    """

    window: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        _non_negative(self.weight)
        whole_number("window", self.window)

    def __call__(self, step: int) -> float:
        i = step % self.window + 1
        return self.weight * 2.0 ** (i - self.window - 1) / (1.0 - 2.0 ** (-self.window - 1))


def as_schedule(weight: float | KLSchedule) -> KLSchedule:
    """Turn a number into :class:`Constant`."""
    if callable(weight):
        return weight
    if not isinstance(weight, int | float):
        raise ConfigError(f"kl_weight must be a number or a function of the step; got {weight!r}.")
    return Constant(float(weight))


def _non_negative(weight: float) -> None:
    if not isinstance(weight, int | float) or not 0.0 <= weight < math.inf:
        raise ConfigError(f"A KL weight must be a finite number of at least 0; got {weight!r}.")
